#include "coordinator/text/jinja/filters.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/text/jinja/is_tests.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/string_methods.h"
#include "coordinator/text/jinja/value_json.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using Kind = Value::Kind;

// What a filter gets. `name` is the one it was called by.
struct Call {
  absl::string_view name;
  const Value& input;
  const Arguments& arguments;
  Budget* budget;

  absl::StatusOr<BoundArguments> Bind(
      std::initializer_list<BoundArguments::Parameter> parameters) const {
    return BoundArguments::Bind(name, arguments, parameters);
  }
  absl::Status Invalid(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", what));
  }
};

// str(value) as filters apply it to their input.
absl::StatusOr<std::string> Text(const Call& call, const Value& value) {
  if (!IsPrintable(value)) {
    return call.Invalid(
        absl::StrCat("the text of a ", TypeName(value), " is not supported"));
  }
  std::string text = Str(value);
  RING_RETURN_IF_ERROR(call.budget->SpendString(text.size()));
  return text;
}

Value Iterator(std::vector<Value> items) {
  List list;
  list.items = std::move(items);
  list.form = List::Form::kIterator;
  return Value::Of(std::move(list));
}

absl::StatusOr<Value> Trim(const Call& call) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        call.Bind({{"chars", Value::None()}}));
  RING_ASSIGN_OR_RETURN(const std::string text, Text(call, call.input));
  if (bound[0].is(Kind::kNone)) {
    return Value::String(Strip(text, nullptr, Side::kBoth));
  }
  RING_ASSIGN_OR_RETURN(const std::string chars, bound.String(0));
  return Value::String(Strip(text, &chars, Side::kBoth));
}

absl::StatusOr<Value> Case(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  RING_ASSIGN_OR_RETURN(const std::string text, Text(call, call.input));
  if (call.name == "upper") return ChangeCase(text, LetterCase::kUpper);
  if (call.name == "lower") return ChangeCase(text, LetterCase::kLower);
  return ChangeCase(text, LetterCase::kCapitalize);
}

// Unlike str.title(), words only begin after white space and opening brackets.
absl::StatusOr<Value> Title(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  RING_ASSIGN_OR_RETURN(std::string text, Text(call, call.input));
  RING_RETURN_IF_ERROR(ChangeCase(text, LetterCase::kTitle).status());
  bool starts_word = true;
  for (char& c : text) {
    const bool separates =
        IsSpace(static_cast<uint8_t>(c)) ||
        absl::string_view("-({[<").find(c) != absl::string_view::npos;
    c = starts_word ? absl::ascii_toupper(c) : absl::ascii_tolower(c);
    starts_word = separates;
  }
  return Value::String(std::move(text));
}

absl::StatusOr<Value> LengthFilter(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  RING_ASSIGN_OR_RETURN(const int64_t length, Length(call.input));
  return Value::Int(length);
}

// The attribute "a.b.0" of a value.
absl::StatusOr<Value> Path(const Call& call, Value value,
                           const std::string& path) {
  for (const absl::string_view part : absl::StrSplit(path, '.')) {
    int64_t index = 0;
    const Value key = absl::SimpleAtoi(part, &index) ? Value::Int(index)
                                                     : Value::String(part);
    RING_ASSIGN_OR_RETURN(value, GetItem(value, key));
  }
  if (value.is(Kind::kCallable)) {
    return call.Invalid(absl::StrCat("\"", path, "\" is a method"));
  }
  return value;
}

absl::StatusOr<Value> Join(const Call& call) {
  RING_ASSIGN_OR_RETURN(
      const BoundArguments bound,
      call.Bind({{"d", Value::String("")}, {"attribute", Value::None()}}));
  RING_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(call.input, call.budget));
  RING_ASSIGN_OR_RETURN(const std::string separator, Text(call, bound[0]));
  std::string joined;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (!bound[1].is(Kind::kNone)) {
      RING_ASSIGN_OR_RETURN(const std::string path, bound.String(1));
      RING_ASSIGN_OR_RETURN(item, Path(call, item, path));
    }
    RING_ASSIGN_OR_RETURN(const std::string text, Text(call, item));
    if (i > 0) joined += separator;
    joined += text;
    RING_RETURN_IF_ERROR(
        call.budget->SpendString(text.size() + separator.size()));
    if (joined.size() >
        static_cast<size_t>(call.budget->limits().string_bytes)) {
      return call.budget->SpendString(joined.size());
    }
  }
  return Value::String(std::move(joined));
}

absl::StatusOr<Value> Default(const Call& call) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        call.Bind({{"default_value", Value::String("")},
                                   {"boolean", Value::Bool(false)}}));
  const bool missing = call.input.is(Kind::kUndefined) ||
                       (Truthy(bound[1]) && !Truthy(call.input));
  return missing ? bound[0] : call.input;
}

absl::StatusOr<Value> ToJsonFilter(const Call& call) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        call.Bind({{"ensure_ascii", Value::Bool(false)},
                                   {"indent", Value::None()},
                                   {"separators", Value::None()},
                                   {"sort_keys", Value::Bool(false)}}));
  JsonStyle style;
  style.ensure_ascii = Truthy(bound[0]);
  if (!bound[1].is(Kind::kNone)) {
    RING_ASSIGN_OR_RETURN(const int64_t indent, bound.Int(1));
    if (indent < 0 || indent > 64) {
      return call.Invalid("the indent is not in 0..64");
    }
    style.indent = static_cast<int>(indent);
    style.item_separator.assign(1, ',');
  }
  if (!bound[2].is(Kind::kNone)) {
    const bool pair = bound[2].is(Kind::kList) &&
                      bound[2].list().items.size() == 2 &&
                      bound[2].list().items[0].is(Kind::kString) &&
                      bound[2].list().items[1].is(Kind::kString);
    if (!pair) return call.Invalid("separators are not a pair of strings");
    style.item_separator = bound[2].list().items[0].string();
    style.key_separator = bound[2].list().items[1].string();
  }
  style.sort_keys = Truthy(bound[3]);
  RING_ASSIGN_OR_RETURN(std::string json, ToJson(call.input, style));
  RING_RETURN_IF_ERROR(call.budget->SpendString(json.size()));
  return Value::String(std::move(json));
}

absl::StatusOr<Value> ReplaceFilter(const Call& call) {
  RING_ASSIGN_OR_RETURN(
      const BoundArguments bound,
      call.Bind({{"old"}, {"new"}, {"count", Value::None()}}));
  RING_ASSIGN_OR_RETURN(const std::string text, Text(call, call.input));
  RING_ASSIGN_OR_RETURN(const std::string from, Text(call, bound[0]));
  RING_ASSIGN_OR_RETURN(const std::string to, Text(call, bound[1]));
  int64_t count = -1;
  if (!bound[2].is(Kind::kNone)) {
    RING_ASSIGN_OR_RETURN(count, bound.Int(2));
  }
  return Replace(text, from, to, count, call.budget);
}

absl::StatusOr<Value> FirstOrLast(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  const bool first = call.name == "first";
  if (!first && call.input.is(Kind::kList) &&
      call.input.list().form == List::Form::kIterator) {
    return call.Invalid("the last item of a generator is not supported");
  }
  RING_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(call.input, call.budget));
  if (items.empty()) {
    return Value::Undefined(first ? "the first item of nothing"
                                  : "the last item of nothing");
  }
  return first ? items.front() : items.back();
}

absl::StatusOr<Value> ListFilter(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  RING_ASSIGN_OR_RETURN(std::vector<Value> items,
                        Iterate(call.input, call.budget));
  return Value::OfList(std::move(items));
}

absl::StatusOr<Value> Reverse(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  if (call.input.is(Kind::kString)) {
    return Slice(call.input, Value::None(), Value::None(), Value::Int(-1),
                 call.budget);
  }
  RING_ASSIGN_OR_RETURN(std::vector<Value> items,
                        Iterate(call.input, call.budget));
  std::reverse(items.begin(), items.end());
  return Iterator(std::move(items));
}

absl::Status RequireDefined(const Call& call) {
  if (!call.input.is(Kind::kUndefined)) return absl::OkStatus();
  return call.Invalid(
      absl::StrCat("'", call.input.undefined_name(), "' is undefined"));
}

absl::StatusOr<Value> Int(const Call& call) {
  RING_RETURN_IF_ERROR(RequireDefined(call));
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        call.Bind({{"default", Value::Int(0)}}));
  if (call.input.is_integral()) return Value::Int(call.input.integer());
  double number = 0;
  if (call.input.is(Kind::kFloat)) {
    number = call.input.number();
  } else if (call.input.is(Kind::kString)) {
    const std::string text = Strip(call.input.string(), nullptr, Side::kBoth);
    int64_t integer = 0;
    if (absl::SimpleAtoi(text, &integer)) return Value::Int(integer);
    if (!absl::SimpleAtod(text, &number)) return bound[0];
  } else {
    return bound[0];
  }
  // 2^63 is the first double that does not fit.
  if (!(std::abs(number) < 9223372036854775808.0)) return bound[0];
  return Value::Int(static_cast<int64_t>(number));
}

absl::StatusOr<Value> Float(const Call& call) {
  RING_RETURN_IF_ERROR(RequireDefined(call));
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        call.Bind({{"default", Value::Float(0.0)}}));
  if (call.input.is_number()) return Value::Float(call.input.number());
  double number = 0;
  if (call.input.is(Kind::kString) &&
      absl::SimpleAtod(Strip(call.input.string(), nullptr, Side::kBoth),
                       &number)) {
    return Value::Float(number);
  }
  return bound[0];
}

// Nothing is escaped in chat templates, so "safe" changes nothing.
absl::StatusOr<Value> StringFilter(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  RING_ASSIGN_OR_RETURN(std::string text, Text(call, call.input));
  return Value::String(std::move(text));
}

absl::StatusOr<Value> Abs(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  if (!call.input.is_number()) return call.Invalid("not a number");
  return call.input.number() < 0 ? Negate(call.input) : call.input;
}

absl::StatusOr<Value> Items(const Call& call) {
  RING_RETURN_IF_ERROR(call.Bind({}).status());
  if (call.input.is(Kind::kUndefined)) return Iterator({});
  if (!call.input.is(Kind::kDict)) return call.Invalid("not a mapping");
  std::vector<Value> items;
  RING_RETURN_IF_ERROR(call.budget->SpendItems(call.input.dict().size()));
  for (const auto& [key, value] : call.input.dict().entries()) {
    items.push_back(Value::OfTuple({Value::String(key), value}));
  }
  return Iterator(std::move(items));
}

// `arguments` from `from` on, for the filter or test that they begin with.
Arguments Rest(const Arguments& arguments, size_t from) {
  Arguments rest = arguments;
  rest.positional.erase(
      rest.positional.begin(),
      rest.positional.begin() +
          static_cast<std::ptrdiff_t>(std::min(from, rest.positional.size())));
  return rest;
}

// map(attribute="a.b", default=...) or map("filter", arguments...).
absl::StatusOr<Value> Map(const Call& call) {
  RING_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(call.input, call.budget));
  std::vector<Value> results;
  if (call.arguments.positional.empty()) {
    RING_ASSIGN_OR_RETURN(
        const BoundArguments bound,
        call.Bind({{"attribute"}, {"default", Value::None()}}));
    RING_ASSIGN_OR_RETURN(const std::string path, bound.String(0));
    for (const Value& item : items) {
      RING_ASSIGN_OR_RETURN(Value value, Path(call, item, path));
      const bool missing =
          value.is(Kind::kUndefined) && !bound[1].is(Kind::kNone);
      results.push_back(missing ? bound[1] : std::move(value));
    }
    return Iterator(std::move(results));
  }
  const Value& name = call.arguments.positional[0];
  if (!name.is(Kind::kString) || !IsFilter(name.string())) {
    return call.Invalid("the first argument is not the name of a filter");
  }
  const Arguments rest = Rest(call.arguments, 1);
  for (const Value& item : items) {
    RING_ASSIGN_OR_RETURN(Value value,
                          ApplyFilter(name.string(), item, rest, call.budget));
    results.push_back(std::move(value));
  }
  return Iterator(std::move(results));
}

// select, reject: (test, arguments...); selectattr, rejectattr: (attribute,
// test, arguments...). Without a test: by truth.
absl::StatusOr<Value> Select(const Call& call) {
  const bool keep = call.name == "select" || call.name == "selectattr";
  const bool by_attribute =
      call.name == "selectattr" || call.name == "rejectattr";
  const auto& arguments = call.arguments.positional;
  const size_t test_at = by_attribute ? 1 : 0;
  if (arguments.size() < test_at ||
      (by_attribute && !arguments[0].is(Kind::kString))) {
    return call.Invalid("the first argument is not the name of an attribute");
  }
  const bool has_test = arguments.size() > test_at;
  if (has_test && (!arguments[test_at].is(Kind::kString) ||
                   !IsTest(arguments[test_at].string()))) {
    return call.Invalid("the argument is not the name of a test");
  }
  const Arguments rest = Rest(call.arguments, test_at + 1);
  RING_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(call.input, call.budget));
  std::vector<Value> results;
  for (const Value& item : items) {
    Value value = item;
    if (by_attribute) {
      RING_ASSIGN_OR_RETURN(value, Path(call, item, arguments[0].string()));
    }
    bool passes = Truthy(value);
    if (has_test) {
      RING_ASSIGN_OR_RETURN(passes, ApplyTest(arguments[test_at].string(),
                                              value, rest, call.budget));
    }
    if (passes == keep) results.push_back(item);
  }
  return Iterator(std::move(results));
}

struct Filter {
  absl::string_view name;
  absl::StatusOr<Value> (*apply)(const Call& call);
};

constexpr Filter kFilters[] = {
    {"abs", Abs},
    {"capitalize", Case},
    {"count", LengthFilter},
    {"d", Default},
    {"default", Default},
    {"first", FirstOrLast},
    {"float", Float},
    {"int", Int},
    {"items", Items},
    {"join", Join},
    {"last", FirstOrLast},
    {"length", LengthFilter},
    {"list", ListFilter},
    {"lower", Case},
    {"map", Map},
    {"reject", Select},
    {"rejectattr", Select},
    {"replace", ReplaceFilter},
    {"reverse", Reverse},
    {"safe", StringFilter},
    {"select", Select},
    {"selectattr", Select},
    {"string", StringFilter},
    {"title", Title},
    {"tojson", ToJsonFilter},
    {"trim", Trim},
    {"upper", Case},
};

const Filter* Find(absl::string_view name) {
  const auto* const found = std::find_if(
      std::begin(kFilters), std::end(kFilters),
      [name](const Filter& filter) { return filter.name == name; });
  return found == std::end(kFilters) ? nullptr : found;
}

}  // namespace

bool IsFilter(absl::string_view name) { return Find(name) != nullptr; }

absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input,
                                  const Arguments& arguments, Budget* budget) {
  const Filter* const filter = Find(name);
  RING_CHECK(filter != nullptr) << "no filter " << std::string(name);
  RING_RETURN_IF_ERROR(budget->Spend(1));
  return filter->apply(Call{name, input, arguments, budget});
}

}  // namespace ring::jinja
