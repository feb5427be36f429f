#include "coordinator/text/jinja/value_json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/json.h"

namespace ring::jinja {
namespace {

// Builds a Value from nlohmann's parser events; Json itself would sort keys.
class ValueBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit ValueBuilder(absl::string_view what) : what_(what) {}

  Value Take() { return std::move(root_); }
  const absl::Status& error() const { return error_; }

  bool null() override { return Add(Value::None()); }
  bool boolean(bool value) override { return Add(Value::Bool(value)); }
  bool number_integer(number_integer_t value) override {
    return Add(Value::Int(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat("the integer ", value, " has over 64 bits"));
    }
    return Add(Value::Int(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& token) override {
    if (token.find_first_of(".eE") == std::string::npos) {
      return Fail(absl::StrCat("the integer ", token, " has over 64 bits"));
    }
    return Add(Value::Float(value));
  }
  bool string(string_t& value) override {
    return Add(Value::String(std::move(value)));
  }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override { return Open(true); }
  bool start_array(std::size_t) override { return Open(false); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    Container& object = open_.back();
    if (object.dict.Find(name) != nullptr) {
      return Fail(absl::StrCat("the key \"", name, "\" occurs twice"));
    }
    object.key = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& exception) override {
    return Fail(
        absl::StrCat("not JSON at byte ", position, ": ", exception.what()));
  }

 private:
  struct Container {
    bool is_object;
    Dict dict;
    std::vector<Value> items;
    std::string key;  // of the next value
  };

  bool Fail(absl::string_view why) {
    error_ = absl::InvalidArgumentError(absl::StrCat(what_, ": ", why));
    return false;
  }

  bool Add(Value value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().is_object) {
      open_.back().dict.Set(open_.back().key, std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  bool Open(bool is_object) {
    if (open_.size() >= kMaxJsonDepth) {
      return Fail(
          absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels"));
    }
    open_.push_back({is_object, {}, {}, {}});
    return true;
  }

  bool Close() {
    Container done = std::move(open_.back());
    open_.pop_back();
    return Add(done.is_object ? Value::Of(std::move(done.dict))
                              : Value::OfList(std::move(done.items)));
  }

  const absl::string_view what_;
  Value root_;
  std::vector<Container> open_;  // not closed yet, outermost first
  absl::Status error_;
};

void AppendJsonString(const std::string& text, bool ensure_ascii,
                      std::string* out) {
  out->push_back('"');
  for (size_t pos = 0; pos < text.size();) {
    const uint32_t c = NextCodePoint(text, &pos);
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\f':
        *out += "\\f";
        break;
      case '\b':
        *out += "\\b";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
          absl::StrAppendFormat(out, "\\u%04x", c);
        } else if (ensure_ascii && c >= 0x10000) {
          absl::StrAppendFormat(out, "\\u%04x\\u%04x",
                                0xD800 + ((c - 0x10000) >> 10),
                                0xDC00 + ((c - 0x10000) & 0x3FF));
        } else {
          AppendCodePoint(c, out);
        }
    }
  }
  out->push_back('"');
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  // Appends `value`, which stands `level` containers deep.
  absl::Status Write(const Value& value, int level) {
    switch (value.kind()) {
      case Value::Kind::kNone:
        out_ += "null";
        return absl::OkStatus();
      case Value::Kind::kBool:
        out_ += value.boolean() ? "true" : "false";
        return absl::OkStatus();
      case Value::Kind::kInt:
        absl::StrAppend(&out_, value.integer());
        return absl::OkStatus();
      case Value::Kind::kFloat:
        WriteFloat(value.number());
        return absl::OkStatus();
      case Value::Kind::kString:
        AppendJsonString(value.string(), style_.ensure_ascii, &out_);
        return absl::OkStatus();
      case Value::Kind::kList:
        if (value.list().form == List::Form::kList ||
            value.list().form == List::Form::kTuple) {
          return WriteList(value.list(), level);
        }
        break;
      case Value::Kind::kDict:
        return WriteDict(value.dict(), level);
      default:
        break;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "an object of type ", TypeName(value), " has no JSON form"));
  }

  std::string Take() { return std::move(out_); }

 private:
  void WriteFloat(double number) {
    if (std::isnan(number)) {
      out_ += "NaN";
    } else if (std::isinf(number)) {
      out_ += number < 0 ? "-Infinity" : "Infinity";
    } else {
      out_ += FloatRepr(number);
    }
  }

  absl::Status WriteList(const List& list, int level) {
    if (list.items.empty()) {
      out_ += "[]";
      return absl::OkStatus();
    }
    out_ += "[";
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      NewLine(level + 1);
      RING_RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    NewLine(level);
    out_ += "]";
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    if (dict.size() == 0) {
      out_ += "{}";
      return absl::OkStatus();
    }
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::sort(
          entries.begin(), entries.end(),
          [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    out_ += "{";
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      NewLine(level + 1);
      AppendJsonString(entries[i]->first, style_.ensure_ascii, &out_);
      out_ += style_.key_separator;
      RING_RETURN_IF_ERROR(Write(entries[i]->second, level + 1));
    }
    NewLine(level);
    out_ += "}";
    return absl::OkStatus();
  }

  void NewLine(int level) {
    if (style_.indent < 0) return;
    out_ += "\n";
    out_.append(static_cast<size_t>(style_.indent) * level, ' ');
  }

  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

absl::StatusOr<Value> ValueFromJson(absl::string_view text,
                                    absl::string_view what) {
  ValueBuilder builder(what);
  try {
    if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
      return builder.error();
    }
  } catch (const nlohmann::json::exception& exception) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", exception.what()));
  }
  return builder.Take();
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  RING_RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Take();
}

}  // namespace ring::jinja
