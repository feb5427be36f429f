#include "worker/model_files/config_fields.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ring {
namespace {

constexpr size_t kMaxValueText = 120;

}  // namespace

std::string ValueText(const Json& value) {
  // The default dump() throws on strings that are no UTF-8.
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMaxValueText) {
    text.resize(kMaxValueText);
    text += "...";
  }
  return text;
}

FieldReader::FieldReader(const Json& object, std::string prefix,
                         ModelConfigFile* report,
                         std::vector<std::string>* errors)
    : object_(object),
      prefix_(std::move(prefix)),
      report_(report),
      errors_(errors) {}

const Json* FieldReader::Find(const std::string& name) {
  known_.push_back(name);
  return Has(name) ? &object_[name] : nullptr;
}

bool FieldReader::Has(const std::string& name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

int64_t FieldReader::Int(const std::string& name, int64_t low, int64_t high,
                         std::optional<int64_t> fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return Absent(name, fallback).value_or(low);
  // An unsigned value beyond the signed range is compared as what it is.
  const bool in_range =
      value->is_number_integer() &&
      (!value->is_number_unsigned() ||
       value->get<uint64_t>() <= static_cast<uint64_t>(high)) &&
      value->get<int64_t>() >= low && value->get<int64_t>() <= high;
  if (!in_range) {
    Refuse(name, *value, absl::StrCat("an integer from ", low, " to ", high));
    return low;
  }
  Note(name, ValueText(*value), ConfigField::Use::kRead);
  return value->get<int64_t>();
}

double FieldReader::Number(const std::string& name, double low, double high,
                           std::optional<double> fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return Absent(name, fallback).value_or(low);
  if (!value->is_number() || !(value->get<double>() >= low) ||
      !(value->get<double>() <= high)) {
    Refuse(name, *value, absl::StrCat("a number from ", low, " to ", high));
    return low;
  }
  Note(name, ValueText(*value), ConfigField::Use::kRead);
  return value->get<double>();
}

bool FieldReader::Bool(const std::string& name, std::optional<bool> fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return Absent(name, fallback).value_or(false);
  if (!value->is_boolean()) {
    Refuse(name, *value, "true or false");
    return false;
  }
  Note(name, ValueText(*value), ConfigField::Use::kRead);
  return value->get<bool>();
}

void FieldReader::Only(const std::string& name, const Json& supported) {
  const Json* value = Find(name);
  if (value == nullptr) {
    Note(name, ValueText(supported), ConfigField::Use::kDefault);
  } else if (*value == supported) {
    Note(name, ValueText(*value), ConfigField::Use::kRead);
  } else {
    Refuse(name, *value, ValueText(supported));
  }
}

void FieldReader::Ignore(const std::string& name) {
  if (const Json* value = Find(name)) {
    Note(name, ValueText(*value), ConfigField::Use::kIgnored);
  }
}

void FieldReader::WarnAboutRest() {
  for (const std::string& name : RestNames()) {
    Note(name, ValueText(object_[name]), ConfigField::Use::kUnknown);
    report_->warnings.push_back(absl::StrCat("config.json: ", prefix_, name,
                                             " = ", ValueText(object_[name]),
                                             " is not known: no effect"));
  }
}

void FieldReader::RefuseRest() {
  for (const std::string& name : RestNames()) {
    Refuse(name, object_[name], "no such field");
  }
}

void FieldReader::Note(const std::string& name, std::string value,
                       ConfigField::Use use) {
  report_->fields.push_back(
      {absl::StrCat(prefix_, name), std::move(value), use});
}

void FieldReader::Refuse(const std::string& name, const Json& value,
                         const std::string& supported) {
  errors_->push_back(absl::StrCat(prefix_, name, " = ", ValueText(value),
                                  " is not supported (supported: ", supported,
                                  ")"));
}

void FieldReader::Missing(const std::string& name) {
  errors_->push_back(absl::StrCat(prefix_, name, " is missing"));
}

template <typename T>
std::optional<T> FieldReader::Absent(const std::string& name,
                                     std::optional<T> fallback) {
  if (fallback.has_value()) {
    Note(name, ValueText(Json(*fallback)), ConfigField::Use::kDefault);
  } else {
    Missing(name);
  }
  return fallback;
}

std::vector<std::string> FieldReader::RestNames() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), name) == known_.end()) {
      names.push_back(name);
    }
  }
  return names;
}

}  // namespace ring
