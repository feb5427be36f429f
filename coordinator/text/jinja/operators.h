// Python's operators on values. INVALID_ARGUMENT where Python raises an
// exception, and for integers beyond 64 bits.
#pragma once

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

enum class BinaryOperator { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class Comparison { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

absl::StatusOr<Value> Apply(BinaryOperator op, const Value& left,
                            const Value& right, Budget* budget);
absl::StatusOr<Value> Negate(const Value& value);
absl::StatusOr<bool> Compare(Comparison op, const Value& left,
                             const Value& right, Budget* budget);

// What `for` and filters see when they go through a value: list items, keys
// of a dict, characters of a string; nothing if it is undefined.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget);

// len(value).
absl::StatusOr<int64_t> Length(const Value& value);

// object.name: a method, a member, or an undefined value.
absl::StatusOr<Value> GetAttribute(const Value& object, absl::string_view name);
// object[key]: an item, else an attribute, else an undefined value.
absl::StatusOr<Value> GetItem(const Value& object, const Value& key);
// object[start:stop:step]; absent parts are None.
absl::StatusOr<Value> Slice(const Value& object, const Value& start,
                            const Value& stop, const Value& step,
                            Budget* budget);

}  // namespace ring::jinja
