#include "coordinator/text/jinja/methods.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/string_methods.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using Kind = Value::Kind;

// All public names, since an attribute of that name is the method.
constexpr std::array<absl::string_view, 47> kStrNames = {
    "capitalize",   "casefold",     "center",    "count",     "encode",
    "endswith",     "expandtabs",   "find",      "format",    "format_map",
    "index",        "isalnum",      "isalpha",   "isascii",   "isdecimal",
    "isdigit",      "isidentifier", "islower",   "isnumeric", "isprintable",
    "isspace",      "istitle",      "isupper",   "join",      "ljust",
    "lower",        "lstrip",       "maketrans", "partition", "removeprefix",
    "removesuffix", "replace",      "rfind",     "rindex",    "rjust",
    "rpartition",   "rsplit",       "rstrip",    "split",     "splitlines",
    "startswith",   "strip",        "swapcase",  "title",     "translate",
    "upper",        "zfill"};
constexpr std::array<absl::string_view, 11> kListNames = {
    "append", "clear", "copy",   "count",   "extend", "index",
    "insert", "pop",   "remove", "reverse", "sort"};
constexpr std::array<absl::string_view, 2> kTupleNames = {"count", "index"};
constexpr std::array<absl::string_view, 11> kDictNames = {
    "clear", "copy",    "fromkeys",   "get",    "items", "keys",
    "pop",   "popitem", "setdefault", "update", "values"};

template <typename Names>
bool Has(const Names& names, absl::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

constexpr std::array<absl::string_view, 4> kSupportedDictNames = {
    "get", "items", "keys", "values"};

absl::StatusOr<Value> CallDictMethod(const Dict& dict, absl::string_view name,
                                     const Arguments& arguments,
                                     Budget* budget) {
  if (name == "get") {
    RING_ASSIGN_OR_RETURN(
        const BoundArguments bound,
        BoundArguments::Bind("get", arguments,
                             {{"key"}, {"default", Value::None()}}));
    const Value* found =
        bound[0].is(Kind::kString) ? dict.Find(bound[0].string()) : nullptr;
    return found != nullptr ? *found : bound[1];
  }
  RING_RETURN_IF_ERROR(BoundArguments::Bind(name, arguments, {}).status());
  RING_RETURN_IF_ERROR(budget->SpendItems(dict.size()));
  List view;
  view.form = List::Form::kView;
  for (const auto& [key, value] : dict.entries()) {
    if (name == "keys") {
      view.items.push_back(Value::String(key));
    } else if (name == "values") {
      view.items.push_back(value);
    } else {
      view.items.push_back(Value::OfTuple({Value::String(key), value}));
    }
  }
  return Value::Of(std::move(view));
}

absl::StatusOr<Value> CallListMethod(const List& list, absl::string_view name,
                                     const Arguments& arguments,
                                     Budget* budget) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        BoundArguments::Bind(name, arguments, {{"value"}}));
  RING_RETURN_IF_ERROR(budget->SpendItems(list.items.size()));
  const auto equals = [&bound](const Value& item) {
    return Equals(item, bound[0]);
  };
  if (name == "count") {
    return Value::Int(
        std::count_if(list.items.begin(), list.items.end(), equals));
  }
  const auto found = std::find_if(list.items.begin(), list.items.end(), equals);
  if (found == list.items.end()) {
    return absl::InvalidArgumentError("index: not in the list");
  }
  return Value::Int(found - list.items.begin());
}

}  // namespace

bool HasMethod(const Value& object, absl::string_view name) {
  switch (object.kind()) {
    case Kind::kString:
      return Has(kStrNames, name);
    case Kind::kDict:
      return Has(kDictNames, name);
    case Kind::kList:
      if (object.list().form == List::Form::kList) {
        return Has(kListNames, name);
      }
      return object.list().form == List::Form::kTuple && Has(kTupleNames, name);
    default:
      return false;
  }
}

bool IsSupportedMethod(absl::string_view name) {
  return IsSupportedStringMethod(name) || Has(kTupleNames, name) ||
         Has(kSupportedDictNames, name);
}

absl::StatusOr<Value> CallMethod(const Value& self, absl::string_view name,
                                 const Arguments& arguments, Budget* budget) {
  if (self.is(Kind::kString)) {
    return CallStringMethod(self.string(), name, arguments, budget);
  }
  if (self.is(Kind::kDict) && Has(kSupportedDictNames, name)) {
    return CallDictMethod(self.dict(), name, arguments, budget);
  }
  if (self.is(Kind::kList) && Has(kTupleNames, name)) {
    return CallListMethod(self.list(), name, arguments, budget);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(TypeName(self), ".", name, " is not supported"));
}

}  // namespace ring::jinja
