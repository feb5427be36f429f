#include "coordinator/text/jinja/is_tests.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/operators.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using Kind = Value::Kind;

// Tests of the value alone.
struct KindTest {
  absl::string_view name;
  bool (*holds)(const Value& value);
};

constexpr KindTest kKindTests[] = {
    {"defined", [](const Value& v) { return !v.is(Kind::kUndefined); }},
    {"undefined", [](const Value& v) { return v.is(Kind::kUndefined); }},
    {"none", [](const Value& v) { return v.is(Kind::kNone); }},
    {"true", [](const Value& v) { return v.is(Kind::kBool) && v.boolean(); }},
    {"false", [](const Value& v) { return v.is(Kind::kBool) && !v.boolean(); }},
    {"boolean", [](const Value& v) { return v.is(Kind::kBool); }},
    {"integer", [](const Value& v) { return v.is(Kind::kInt); }},
    {"float", [](const Value& v) { return v.is(Kind::kFloat); }},
    {"number", [](const Value& v) { return v.is_number(); }},
    {"string", [](const Value& v) { return v.is(Kind::kString); }},
    {"mapping", [](const Value& v) { return v.is(Kind::kDict); }},
    {"iterable",
     [](const Value& v) {
       return v.is(Kind::kString) || v.is(Kind::kList) || v.is(Kind::kDict) ||
              v.is(Kind::kUndefined);
     }},
    // What has a length and can be indexed: not views and iterators.
    {"sequence",
     [](const Value& v) {
       return v.is(Kind::kString) || v.is(Kind::kDict) ||
              v.is(Kind::kUndefined) ||
              (v.is(Kind::kList) && (v.list().form == List::Form::kList ||
                                     v.list().form == List::Form::kTuple));
     }},
    {"callable",
     [](const Value& v) {
       return v.is(Kind::kCallable) || v.is(Kind::kUndefined);
     }},
};

struct CompareTest {
  absl::string_view name;
  Comparison comparison;
};

constexpr CompareTest kCompareTests[] = {
    {"eq", Comparison::kEq},       {"equalto", Comparison::kEq},
    {"==", Comparison::kEq},       {"ne", Comparison::kNe},
    {"!=", Comparison::kNe},       {"lt", Comparison::kLt},
    {"lessthan", Comparison::kLt}, {"<", Comparison::kLt},
    {"le", Comparison::kLe},       {"<=", Comparison::kLe},
    {"gt", Comparison::kGt},       {"greaterthan", Comparison::kGt},
    {">", Comparison::kGt},        {"ge", Comparison::kGe},
    {">=", Comparison::kGe},       {"in", Comparison::kIn},
};

template <typename Test, size_t kCount>
const Test* Find(const Test (&tests)[kCount], absl::string_view name) {
  const Test* const found = std::find_if(
      tests, tests + kCount, [name](const Test& t) { return t.name == name; });
  return found == tests + kCount ? nullptr : found;
}

bool IsDivisibilityTest(absl::string_view name) {
  return name == "odd" || name == "even" || name == "divisibleby";
}

absl::StatusOr<bool> TestDivisibility(absl::string_view name,
                                      const Value& value,
                                      const Arguments& arguments,
                                      Budget* budget) {
  Value divisor = Value::Int(2);
  if (name == "divisibleby") {
    RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                          BoundArguments::Bind(name, arguments, {{"num"}}));
    divisor = bound[0];
  } else {
    RING_RETURN_IF_ERROR(BoundArguments::Bind(name, arguments, {}).status());
  }
  RING_ASSIGN_OR_RETURN(const Value remainder,
                        Apply(BinaryOperator::kMod, value, divisor, budget));
  return Equals(remainder, Value::Int(name == "odd" ? 1 : 0));
}

}  // namespace

bool IsTest(absl::string_view name) {
  return Find(kKindTests, name) != nullptr ||
         Find(kCompareTests, name) != nullptr || IsDivisibilityTest(name);
}

absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& value,
                               const Arguments& arguments, Budget* budget) {
  RING_RETURN_IF_ERROR(budget->Spend(1));
  if (const KindTest* test = Find(kKindTests, name)) {
    RING_RETURN_IF_ERROR(BoundArguments::Bind(name, arguments, {}).status());
    return test->holds(value);
  }
  if (const CompareTest* test = Find(kCompareTests, name)) {
    RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                          BoundArguments::Bind(name, arguments, {{"other"}}));
    return Compare(test->comparison, value, bound[0], budget);
  }
  RING_CHECK(IsDivisibilityTest(name)) << "no test " << std::string(name);
  return TestDivisibility(name, value, arguments, budget);
}

}  // namespace ring::jinja
