#include "coordinator/text/jinja/arguments.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ring::jinja {

absl::StatusOr<BoundArguments> BoundArguments::Bind(
    absl::string_view callee, const Arguments& arguments,
    std::initializer_list<Parameter> parameters) {
  const auto invalid = [callee](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(callee, ": ", what...));
  };
  if (arguments.positional.size() > parameters.size()) {
    return invalid("takes at most ", parameters.size(), " arguments, got ",
                   arguments.positional.size());
  }
  BoundArguments bound(callee);
  std::vector<bool> given;
  for (const Parameter& parameter : parameters) {
    const size_t i = bound.values_.size();
    const bool positional = i < arguments.positional.size();
    bound.names_.emplace_back(parameter.name);
    bound.values_.push_back(positional ? arguments.positional[i]
                                       : parameter.fallback);
    given.push_back(positional);
  }
  for (const auto& [name, value] : arguments.named) {
    size_t i = 0;
    while (i < bound.names_.size() && bound.names_[i] != name) ++i;
    if (i == bound.names_.size()) return invalid("no argument \"", name, "\"");
    if (given[i]) return invalid("argument \"", name, "\" is given twice");
    bound.values_[i] = value;
    given[i] = true;
  }
  size_t i = 0;
  for (const Parameter& parameter : parameters) {
    if (parameter.required && !given[i]) {
      return invalid("argument \"", parameter.name, "\" is missing");
    }
    ++i;
  }
  return bound;
}

absl::StatusOr<std::string> BoundArguments::String(size_t parameter) const {
  const Value& value = values_[parameter];
  if (value.is(Value::Kind::kString)) return value.string();
  return absl::InvalidArgumentError(
      absl::StrCat(callee_, ": \"", names_[parameter], "\" is a ",
                   TypeName(value), ", not a str"));
}

absl::StatusOr<int64_t> BoundArguments::Int(size_t parameter) const {
  const Value& value = values_[parameter];
  if (value.is_integral()) return value.integer();
  return absl::InvalidArgumentError(
      absl::StrCat(callee_, ": \"", names_[parameter], "\" is a ",
                   TypeName(value), ", not an int"));
}

}  // namespace ring::jinja
