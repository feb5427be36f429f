// Sizes that decode steps are padded to.
#pragma once

#include <cstdint>

namespace ring {

// The smallest of 1, 2, 4, 8, 16, 24, 32, ... that holds `rows`. A device
// records one step for each size that occurs, so there are few.
constexpr int64_t DecodeBucket(int64_t rows) {
  if (rows <= 2) return rows;
  if (rows <= 4) return 4;
  return (rows + 7) / 8 * 8;
}

}  // namespace ring
