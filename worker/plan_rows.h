// How many rows a data-parallel group has in a step.
#pragma once

#include <cstdint>

#include "ring/v1/plan.pb.h"

namespace ring {

// The tokens of all segments, padding not among them.
inline int64_t RowsOf(const v1::GroupPlan& plan) {
  int64_t rows = 0;
  for (const v1::Segment& segment : plan.segments()) {
    rows += segment.tokens_size();
  }
  return rows;
}

}  // namespace ring
