#include "coordinator/text/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using Kind = Value::Kind;

absl::Status Overflow() {
  return absl::InvalidArgumentError("an integer beyond 64 bits");
}
absl::Status DivisionByZero() {
  return absl::InvalidArgumentError("division by zero");
}
absl::Status UndefinedError(const Value& value) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", value.undefined_name(), "' is undefined"));
}

constexpr absl::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};

absl::Status Unsupported(absl::string_view op, const Value& left,
                         const Value& right) {
  if (left.is(Kind::kUndefined)) return UndefinedError(left);
  if (right.is(Kind::kUndefined)) return UndefinedError(right);
  return absl::InvalidArgumentError(
      absl::StrCat("'", op, "' is not supported between '", TypeName(left),
                   "' and '", TypeName(right), "'"));
}

absl::StatusOr<Value> IntPower(int64_t base, int64_t exponent) {
  int64_t result = 1;
  // |base| <= 1 is the only case that goes on beyond 63 factors.
  if (base == 0 || base == 1) return Value::Int(exponent == 0 ? 1 : base);
  if (base == -1) return Value::Int(exponent % 2 == 0 ? 1 : -1);
  for (int64_t i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(result, base, &result)) return Overflow();
  }
  return Value::Int(result);
}

absl::StatusOr<Value> IntArithmetic(BinaryOperator op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case BinaryOperator::kAdd:
      if (__builtin_add_overflow(a, b, &result)) return Overflow();
      return Value::Int(result);
    case BinaryOperator::kSub:
      if (__builtin_sub_overflow(a, b, &result)) return Overflow();
      return Value::Int(result);
    case BinaryOperator::kMul:
      if (__builtin_mul_overflow(a, b, &result)) return Overflow();
      return Value::Int(result);
    case BinaryOperator::kDiv:
      if (b == 0) return DivisionByZero();
      return Value::Float(static_cast<double>(a) / static_cast<double>(b));
    case BinaryOperator::kFloorDiv:
      if (b == 0) return DivisionByZero();
      if (a == INT64_MIN && b == -1) return Overflow();
      result = a / b;
      if (a % b != 0 && (a < 0) != (b < 0)) --result;
      return Value::Int(result);
    case BinaryOperator::kMod:
      if (b == 0) return DivisionByZero();
      if (b == -1) return Value::Int(0);
      result = a % b;
      if (result != 0 && (result < 0) != (b < 0)) result += b;
      return Value::Int(result);
    case BinaryOperator::kPow:
      if (b >= 0) return IntPower(a, b);
      if (a == 0) return DivisionByZero();
      return Value::Float(
          std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  return Overflow();
}

absl::StatusOr<Value> FloatArithmetic(BinaryOperator op, double a, double b) {
  switch (op) {
    case BinaryOperator::kAdd:
      return Value::Float(a + b);
    case BinaryOperator::kSub:
      return Value::Float(a - b);
    case BinaryOperator::kMul:
      return Value::Float(a * b);
    case BinaryOperator::kDiv:
      if (b == 0) return DivisionByZero();
      return Value::Float(a / b);
    case BinaryOperator::kFloorDiv:
      if (b == 0) return DivisionByZero();
      return Value::Float(std::floor(a / b));
    case BinaryOperator::kMod: {
      if (b == 0) return DivisionByZero();
      double result = std::fmod(a, b);
      if (result != 0 && (result < 0) != (b < 0)) result += b;
      return Value::Float(result);
    }
    case BinaryOperator::kPow:
      if (a < 0 && b != std::floor(b)) {
        return absl::InvalidArgumentError("a complex number");
      }
      return Value::Float(std::pow(a, b));
  }
  return DivisionByZero();
}

bool IsSequence(const Value& value) {
  return value.is(Kind::kList) && (value.list().form == List::Form::kList ||
                                   value.list().form == List::Form::kTuple);
}

absl::StatusOr<Value> Repeat(const Value& sequence, int64_t times,
                             Budget* budget) {
  times = std::max<int64_t>(times, 0);
  const bool is_string = sequence.is(Kind::kString);
  const size_t size =
      is_string ? sequence.string().size() : sequence.list().items.size();
  int64_t total = 0;
  if (__builtin_mul_overflow(times, static_cast<int64_t>(size), &total)) {
    return Overflow();
  }
  if (is_string) {
    RING_RETURN_IF_ERROR(budget->SpendString(static_cast<size_t>(total)));
    std::string text;
    text.reserve(static_cast<size_t>(total));
    for (int64_t i = 0; i < times && size > 0; ++i) text += sequence.string();
    return Value::String(std::move(text));
  }
  RING_RETURN_IF_ERROR(budget->SpendItems(static_cast<size_t>(total)));
  List list;
  list.form = sequence.list().form;
  for (int64_t i = 0; i < times && size > 0; ++i) {
    list.items.insert(list.items.end(), sequence.list().items.begin(),
                      sequence.list().items.end());
  }
  return Value::Of(std::move(list));
}

absl::StatusOr<Value> AddSequences(const Value& left, const Value& right,
                                   Budget* budget) {
  if (left.is(Kind::kString)) {
    RING_RETURN_IF_ERROR(
        budget->SpendString(left.string().size() + right.string().size()));
    return Value::String(left.string() + right.string());
  }
  const auto& tail = right.list().items;
  List list;
  list.form = left.list().form;
  list.items = left.list().items;
  list.items.insert(list.items.end(), tail.begin(), tail.end());
  RING_RETURN_IF_ERROR(budget->SpendItems(list.items.size()));
  return Value::Of(std::move(list));
}

// -1, 0 or 1 for values that have an order.
absl::StatusOr<int> Order(absl::string_view op, const Value& left,
                          const Value& right) {
  const auto sign = [](const auto& a, const auto& b) {
    return a < b ? -1 : (b < a ? 1 : 0);
  };
  if (left.is_integral() && right.is_integral()) {
    return sign(left.integer(), right.integer());
  }
  if (left.is_number() && right.is_number()) {
    return sign(left.number(), right.number());
  }
  if (left.is(Kind::kString) && right.is(Kind::kString)) {
    return sign(left.string(), right.string());  // bytes order as code points
  }
  if (IsSequence(left) && IsSequence(right) &&
      left.list().form == right.list().form) {
    const auto& a = left.list().items;
    const auto& b = right.list().items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!Equals(a[i], b[i])) return Order(op, a[i], b[i]);
    }
    return sign(a.size(), b.size());
  }
  return Unsupported(op, left, right);
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item,
                              Budget* budget) {
  switch (container.kind()) {
    case Kind::kString:
      if (!item.is(Kind::kString)) return Unsupported("in", item, container);
      RING_RETURN_IF_ERROR(budget->SpendString(container.string().size()));
      return absl::StrContains(container.string(), item.string());
    case Kind::kDict:
      return item.is(Kind::kString) &&
             container.dict().Find(item.string()) != nullptr;
    case Kind::kList:
    case Kind::kUndefined: {
      RING_ASSIGN_OR_RETURN(const std::vector<Value> items,
                            Iterate(container, budget));
      return std::any_of(
          items.begin(), items.end(),
          [&item](const Value& other) { return Equals(item, other); });
    }
    default:
      return Unsupported("in", item, container);
  }
}

// Byte offset of the `index`-th character.
size_t ByteOffset(const std::string& text, size_t index) {
  size_t pos = 0;
  while (index-- > 0) NextCodePoint(text, &pos);
  return pos;
}

std::vector<int64_t> SliceIndices(int64_t first, int64_t last, int64_t step) {
  std::vector<int64_t> indices;
  for (int64_t i = first; step < 0 ? i > last : i < last;) {
    indices.push_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return indices;
}

std::string SliceString(const std::string& text, int64_t first, int64_t last,
                        int64_t step) {
  if (step == 1) {
    if (first >= last) return "";
    const size_t begin = ByteOffset(text, static_cast<size_t>(first));
    const size_t end = ByteOffset(text, static_cast<size_t>(last));
    return text.substr(begin, end - begin);
  }
  std::vector<uint32_t> characters;
  for (size_t pos = 0; pos < text.size();) {
    characters.push_back(NextCodePoint(text, &pos));
  }
  std::string out;
  for (const int64_t i : SliceIndices(first, last, step)) {
    AppendCodePoint(characters[static_cast<size_t>(i)], &out);
  }
  return out;
}

// A slice's bound: None gives `fallback`, negative counts from the end.
absl::StatusOr<int64_t> SliceBound(const Value& bound, int64_t size,
                                   int64_t fallback, bool backwards) {
  if (bound.is(Kind::kNone)) return fallback;
  if (!bound.is_integral()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a slice from or to a ", TypeName(bound)));
  }
  int64_t value = bound.integer();
  if (value < 0) value += size;
  const int64_t lowest = backwards ? -1 : 0;
  const int64_t highest = backwards ? size - 1 : size;
  return std::clamp(value, lowest, highest);
}

}  // namespace

absl::StatusOr<Value> Apply(BinaryOperator op, const Value& left,
                            const Value& right, Budget* budget) {
  if (left.is_integral() && right.is_integral()) {
    return IntArithmetic(op, left.integer(), right.integer());
  }
  if (left.is_number() && right.is_number()) {
    return FloatArithmetic(op, left.number(), right.number());
  }
  const auto repeatable = [](const Value& value) {
    return value.is(Kind::kString) || IsSequence(value);
  };
  if (op == BinaryOperator::kMul) {
    if (repeatable(left) && right.is_integral()) {
      return Repeat(left, right.integer(), budget);
    }
    if (left.is_integral() && repeatable(right)) {
      return Repeat(right, left.integer(), budget);
    }
  }
  if (op == BinaryOperator::kAdd && repeatable(left) &&
      left.kind() == right.kind() && repeatable(right) &&
      (left.is(Kind::kString) || left.list().form == right.list().form)) {
    return AddSequences(left, right, budget);
  }
  return Unsupported(kSymbols[static_cast<int>(op)], left, right);
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.is_integral()) {
    return IntArithmetic(BinaryOperator::kSub, 0, value.integer());
  }
  if (value.is(Kind::kFloat)) return Value::Float(-value.number());
  if (value.is(Kind::kUndefined)) return UndefinedError(value);
  return absl::InvalidArgumentError(
      absl::StrCat("the negative of a ", TypeName(value)));
}

absl::StatusOr<bool> Compare(Comparison op, const Value& left,
                             const Value& right, Budget* budget) {
  switch (op) {
    case Comparison::kEq:
      return Equals(left, right);
    case Comparison::kNe:
      return !Equals(left, right);
    case Comparison::kIn:
      return Contains(right, left, budget);
    case Comparison::kNotIn: {
      RING_ASSIGN_OR_RETURN(const bool found, Contains(right, left, budget));
      return !found;
    }
    case Comparison::kLt: {
      RING_ASSIGN_OR_RETURN(const int order, Order("<", left, right));
      return order < 0;
    }
    case Comparison::kLe: {
      RING_ASSIGN_OR_RETURN(const int order, Order("<=", left, right));
      return order <= 0;
    }
    case Comparison::kGt: {
      RING_ASSIGN_OR_RETURN(const int order, Order(">", left, right));
      return order > 0;
    }
    case Comparison::kGe: {
      RING_ASSIGN_OR_RETURN(const int order, Order(">=", left, right));
      return order >= 0;
    }
  }
  return false;
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      return items;
    case Kind::kList: {
      const List& list = value.list();
      if (list.form == List::Form::kIterator) {
        if (list.consumed) {
          return absl::InvalidArgumentError(
              "the result of a filter is gone through a second time; make it a "
              "list first");
        }
        list.consumed = true;
      }
      RING_RETURN_IF_ERROR(budget->SpendItems(list.items.size()));
      return list.items;
    }
    case Kind::kDict:
      for (const auto& [key, item] : value.dict().entries()) {
        items.push_back(Value::String(key));
      }
      break;
    case Kind::kString: {
      const std::string& text = value.string();
      RING_RETURN_IF_ERROR(budget->SpendItems(text.size()));
      for (size_t pos = 0; pos < text.size();) {
        const size_t begin = pos;
        NextCodePoint(text, &pos);
        items.push_back(Value::String(text.substr(begin, pos - begin)));
      }
      return items;
    }
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("'", TypeName(value), "' object is not iterable"));
  }
  RING_RETURN_IF_ERROR(budget->SpendItems(items.size()));
  return items;
}

absl::StatusOr<int64_t> Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return static_cast<int64_t>(CountCodePoints(value.string()));
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().size());
    case Kind::kList:
      if (value.list().form != List::Form::kIterator) {
        return static_cast<int64_t>(value.list().items.size());
      }
      break;
    default:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("object of type '", TypeName(value), "' has no length"));
}

absl::StatusOr<Value> GetAttribute(const Value& object,
                                   absl::string_view name) {
  if (object.is(Kind::kUndefined)) return UndefinedError(object);
  if (HasMethod(object, name)) {
    return Value::Of(
        Callable{Callable::Form::kMethod, std::string(name), object});
  }
  const Value* member = nullptr;
  if (object.is(Kind::kDict)) member = object.dict().Find(name);
  if (object.is(Kind::kNamespace)) {
    member = object.namespace_members()->Find(name);
  }
  return member != nullptr ? *member : Value::Undefined(name);
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key) {
  if (object.is(Kind::kUndefined)) return UndefinedError(object);
  if (key.is(Kind::kString)) {
    if (object.is(Kind::kDict)) {
      const Value* member = object.dict().Find(key.string());
      if (member != nullptr) return *member;
    }
    return GetAttribute(object, key.string());
  }
  const Value undefined =
      Value::Undefined(IsPrintable(key) ? Str(key) : "item");
  if (!key.is_integral()) return undefined;
  if (object.is(Kind::kList) && object.list().form == List::Form::kView) {
    return absl::InvalidArgumentError(
        "an index into items(), keys(), values() or range() is not supported");
  }
  if (!object.is(Kind::kString) && !IsSequence(object)) return undefined;
  RING_ASSIGN_OR_RETURN(const int64_t size, Length(object));
  const int64_t index =
      key.integer() < 0 ? key.integer() + size : key.integer();
  if (index < 0 || index >= size) return undefined;
  if (!object.is(Kind::kString)) {
    return object.list().items[static_cast<size_t>(index)];
  }
  const std::string& text = object.string();
  const size_t begin = ByteOffset(text, static_cast<size_t>(index));
  size_t end = begin;
  NextCodePoint(text, &end);
  return Value::String(text.substr(begin, end - begin));
}

absl::StatusOr<Value> Slice(const Value& object, const Value& start,
                            const Value& stop, const Value& step_value,
                            Budget* budget) {
  if (object.is(Kind::kUndefined)) return UndefinedError(object);
  if (!object.is(Kind::kString) && !IsSequence(object)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a slice of a ", TypeName(object), " is not supported"));
  }
  int64_t step = 1;
  if (!step_value.is(Kind::kNone)) {
    if (!step_value.is_integral() || step_value.integer() == 0) {
      return absl::InvalidArgumentError("a slice step that is no number");
    }
    step = step_value.integer();
  }
  RING_ASSIGN_OR_RETURN(const int64_t size, Length(object));
  const bool backwards = step < 0;
  RING_ASSIGN_OR_RETURN(
      const int64_t first,
      SliceBound(start, size, backwards ? size - 1 : 0, backwards));
  RING_ASSIGN_OR_RETURN(
      const int64_t last,
      SliceBound(stop, size, backwards ? -1 : size, backwards));
  if (object.is(Kind::kString)) {
    RING_RETURN_IF_ERROR(budget->SpendString(object.string().size()));
    return Value::String(SliceString(object.string(), first, last, step));
  }
  List list;
  list.form = object.list().form;
  for (const int64_t i : SliceIndices(first, last, step)) {
    list.items.push_back(object.list().items[static_cast<size_t>(i)]);
  }
  RING_RETURN_IF_ERROR(budget->SpendItems(list.items.size()));
  return Value::Of(std::move(list));
}

}  // namespace ring::jinja
