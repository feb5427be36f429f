#include "coordinator/text/jinja/value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/check.h"

namespace ring::jinja {
namespace {

// Characters above ASCII that Python's repr writes as escapes: controls,
// format characters, separators other than the space, private use. Those of
// the planes above the first are left out: repr is for diagnosis.
constexpr std::array<std::pair<uint32_t, uint32_t>, 14> kEscapedInRepr = {{
    {0x7F, 0xA0},
    {0xAD, 0xAD},
    {0x600, 0x605},
    {0x61C, 0x61C},
    {0x6DD, 0x6DD},
    {0x70F, 0x70F},
    {0x1680, 0x1680},
    {0x180E, 0x180E},
    {0x2000, 0x200F},
    {0x2028, 0x202F},
    {0x205F, 0x206F},
    {0x3000, 0x3000},
    {0xE000, 0xF8FF},
    {0xFEFF, 0xFEFF},
}};

bool EscapedInRepr(uint32_t c) {
  return c < 0x20 || std::any_of(kEscapedInRepr.begin(), kEscapedInRepr.end(),
                                 [c](const auto& r) {
                                   return c >= r.first && c <= r.second;
                                 });
}

std::string StringRepr(const std::string& text) {
  const bool has_single = text.find('\'') != std::string::npos;
  const bool has_double = text.find('"') != std::string::npos;
  const uint32_t quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, static_cast<char>(quote));
  for (size_t pos = 0; pos < text.size();) {
    const uint32_t c = NextCodePoint(text, &pos);
    if (c == quote || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (EscapedInRepr(c)) {
      out += c < 0x100 ? absl::StrFormat("\\x%02x", c)
                       : absl::StrFormat("\\u%04x", c);
    } else {
      AppendCodePoint(c, &out);
    }
  }
  out.push_back(static_cast<char>(quote));
  return out;
}

}  // namespace

Value Value::Undefined(absl::string_view name) {
  return Value(Kind::kUndefined,
               std::make_shared<const std::string>(std::string(name)));
}
Value Value::None() { return Value(Kind::kNone, std::monostate()); }
Value Value::Bool(bool value) { return Value(Kind::kBool, value); }
Value Value::Int(int64_t value) { return Value(Kind::kInt, value); }
Value Value::Float(double value) { return Value(Kind::kFloat, value); }
Value Value::String(std::string value) {
  return Value(Kind::kString,
               std::make_shared<const std::string>(std::move(value)));
}
Value Value::String(absl::string_view value) {
  return String(std::string(value));
}
Value Value::Of(List list) {
  list.depth = 1;
  for (const Value& item : list.items) {
    list.depth = std::max(list.depth, item.depth() + 1);
  }
  return Value(Kind::kList, std::make_shared<const List>(std::move(list)));
}
Value Value::OfList(std::vector<Value> items) {
  List list;
  list.items = std::move(items);
  return Of(std::move(list));
}
Value Value::OfTuple(std::vector<Value> items) {
  List list;
  list.items = std::move(items);
  list.form = List::Form::kTuple;
  return Of(std::move(list));
}
Value Value::Of(Dict dict) {
  return Value(Kind::kDict, std::make_shared<const Dict>(std::move(dict)));
}
Value Value::NewNamespace(Dict members) {
  return Value(Kind::kNamespace, std::make_shared<Dict>(std::move(members)));
}
Value Value::Of(Callable callable) {
  return Value(Kind::kCallable,
               std::make_shared<const Callable>(std::move(callable)));
}

const std::string& Value::undefined_name() const {
  RING_CHECK(is(Kind::kUndefined));
  return *std::get<std::shared_ptr<const std::string>>(data_);
}
int64_t Value::integer() const {
  return is(Kind::kBool) ? int64_t{boolean()} : std::get<int64_t>(data_);
}
double Value::number() const {
  return is(Kind::kFloat) ? std::get<double>(data_)
                          : static_cast<double>(integer());
}
const std::string& Value::string() const {
  RING_CHECK(is(Kind::kString));
  return *std::get<std::shared_ptr<const std::string>>(data_);
}
const List& Value::list() const {
  return *std::get<std::shared_ptr<const List>>(data_);
}
const Dict& Value::dict() const {
  return *std::get<std::shared_ptr<const Dict>>(data_);
}
Dict* Value::namespace_members() const {
  return std::get<std::shared_ptr<Dict>>(data_).get();
}
const Callable& Value::callable() const {
  return *std::get<std::shared_ptr<const Callable>>(data_);
}

int Value::depth() const {
  if (is(Kind::kDict)) return dict().depth() + 1;
  return is(Kind::kList) ? list().depth : 0;
}

const Value* Dict::Find(absl::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

void Dict::Set(absl::string_view key, Value value) {
  depth_ = std::max(depth_, value.depth());
  const auto [place, inserted] =
      index_.try_emplace(std::string(key), entries_.size());
  if (inserted) {
    entries_.emplace_back(std::string(key), std::move(value));
  } else {
    entries_[place->second].second = std::move(value);
  }
}

bool Truthy(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kUndefined:
    case Value::Kind::kNone:
      return false;
    case Value::Kind::kBool:
    case Value::Kind::kInt:
    case Value::Kind::kFloat:
      return value.number() != 0;
    case Value::Kind::kString:
      return !value.string().empty();
    case Value::Kind::kList:
      return value.list().form == List::Form::kIterator ||
             !value.list().items.empty();
    case Value::Kind::kDict:
      return value.dict().size() > 0;
    case Value::Kind::kNamespace:
    case Value::Kind::kCallable:
      return true;
  }
  return false;
}

bool Equals(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Value::Kind::kString:
      return a.string() == b.string();
    case Value::Kind::kList: {
      const List& left = a.list();
      const List& right = b.list();
      if (left.form != right.form) return false;
      if (left.form == List::Form::kIterator) return &left == &right;
      return std::equal(left.items.begin(), left.items.end(),
                        right.items.begin(), right.items.end(), Equals);
    }
    case Value::Kind::kDict: {
      if (a.dict().size() != b.dict().size()) return false;
      for (const auto& [key, value] : a.dict().entries()) {
        const Value* other = b.dict().Find(key);
        if (other == nullptr || !Equals(value, *other)) return false;
      }
      return true;
    }
    case Value::Kind::kNamespace:
      return a.namespace_members() == b.namespace_members();
    case Value::Kind::kCallable:
      return &a.callable() == &b.callable();
    default:
      return true;  // None and undefined have one value each
  }
}

absl::string_view TypeName(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      return "Undefined";
    case Value::Kind::kNone:
      return "NoneType";
    case Value::Kind::kBool:
      return "bool";
    case Value::Kind::kInt:
      return "int";
    case Value::Kind::kFloat:
      return "float";
    case Value::Kind::kString:
      return "str";
    case Value::Kind::kList:
      switch (value.list().form) {
        case List::Form::kList:
          return "list";
        case List::Form::kTuple:
          return "tuple";
        case List::Form::kView:
          return "view";
        case List::Form::kIterator:
          return "generator";
      }
      return "list";
    case Value::Kind::kDict:
      return "dict";
    case Value::Kind::kNamespace:
      return "Namespace";
    case Value::Kind::kCallable:
      return "function";
  }
  return "object";
}

bool IsPrintable(const Value& value) {
  if (value.is(Value::Kind::kNamespace) || value.is(Value::Kind::kCallable)) {
    return false;
  }
  if (value.is(Value::Kind::kDict)) {
    const auto& entries = value.dict().entries();
    return std::all_of(entries.begin(), entries.end(), [](const auto& entry) {
      return IsPrintable(entry.second);
    });
  }
  if (!value.is(Value::Kind::kList)) return true;
  const List& list = value.list();
  return (list.form == List::Form::kList || list.form == List::Form::kTuple) &&
         std::all_of(list.items.begin(), list.items.end(), IsPrintable);
}

std::string Str(const Value& value) {
  if (value.is(Value::Kind::kString)) return value.string();
  if (value.is(Value::Kind::kUndefined)) return "";
  return Repr(value);
}

std::string Repr(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      return "Undefined";
    case Value::Kind::kNone:
      return "None";
    case Value::Kind::kBool:
      return value.boolean() ? "True" : "False";
    case Value::Kind::kInt:
      return absl::StrCat(value.integer());
    case Value::Kind::kFloat:
      return FloatRepr(value.number());
    case Value::Kind::kString:
      return StringRepr(value.string());
    case Value::Kind::kList: {
      const List& list = value.list();
      const bool tuple = list.form == List::Form::kTuple;
      std::string out = tuple ? "(" : "[";
      for (size_t i = 0; i < list.items.size(); ++i) {
        absl::StrAppend(&out, i == 0 ? "" : ", ", Repr(list.items[i]));
      }
      if (tuple && list.items.size() == 1) out += ",";
      return out + (tuple ? ")" : "]");
    }
    case Value::Kind::kDict: {
      std::string out = "{";
      for (const auto& [key, item] : value.dict().entries()) {
        absl::StrAppend(&out, out.size() == 1 ? "" : ", ", StringRepr(key),
                        ": ", Repr(item));
      }
      return out + "}";
    }
    case Value::Kind::kNamespace:
    case Value::Kind::kCallable:
      break;
  }
  RING_CHECK(false) << "repr of a " << std::string(TypeName(value));
  return "";
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value,
                                 std::chars_format::scientific)
                       .ptr;
  // d.ddde[+-]xx: take the digits and place the point as Python does.
  const std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  std::string digits = text.substr(0, e);
  const std::string sign = digits[0] == '-' ? "-" : "";
  digits.erase(std::remove_if(digits.begin(), digits.end(),
                              [](char c) { return c == '.' || c == '-'; }),
               digits.end());
  if (exponent < -4 || exponent >= 16) {
    const std::string point = digits.size() > 1 ? "." : "";
    return absl::StrCat(sign, digits.substr(0, 1), point, digits.substr(1),
                        absl::StrFormat("e%c%02d", exponent < 0 ? '-' : '+',
                                        std::abs(exponent)));
  }
  if (exponent < 0) {
    return absl::StrCat(sign, "0.", std::string(-exponent - 1, '0'), digits);
  }
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    return absl::StrCat(sign, digits, std::string(whole - digits.size(), '0'),
                        ".0");
  }
  return absl::StrCat(sign, digits.substr(0, whole), ".", digits.substr(whole));
}

}  // namespace ring::jinja
