// What rendering one template may cost.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace ring::jinja {

struct Limits {
  // Size of the rendered text, and of any string on the way.
  int64_t string_bytes = int64_t{256} << 20;
  // Units of work: 1 for each node of the template that is evaluated and each
  // 32 bytes of text produced or searched, 16 for each item of a list. Bounds
  // the memory as well: to some 32 bytes a unit.
  int64_t work = 50'000'000;
  // Nodes and macros being evaluated inside each other. One level takes up to
  // 10 KiB of stack in a build with sanitizers.
  int depth = 400;
};

// Nesting of a template's blocks and expressions.
inline constexpr int kMaxTemplateDepth = 200;
// Nesting of lists and dicts in each other.
inline constexpr int kMaxValueDepth = 100;

// Counts down the work of one rendering. Confined to it.
class Budget {
 public:
  explicit Budget(const Limits& limits)
      : limits_(limits), work_left_(limits.work) {}

  // RESOURCE_EXHAUSTED once all work is used up.
  absl::Status Spend(int64_t work);
  // To be called before a string of `bytes` is built. RESOURCE_EXHAUSTED also
  // if it is too long.
  absl::Status SpendString(size_t bytes);
  // To be called before a list of `items` is built.
  absl::Status SpendItems(size_t items);

  const Limits& limits() const { return limits_; }

 private:
  const Limits limits_;
  int64_t work_left_;
};

}  // namespace ring::jinja
