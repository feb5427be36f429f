// A run of consecutive indices.
#pragma once

#include <cstdint>

namespace ring {

// [begin, end), begin <= end. Of rows, heads, channels: the name of the
// variable says which.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  bool empty() const { return begin == end; }
  bool operator==(const Range& other) const = default;
};

}  // namespace ring
