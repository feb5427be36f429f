// How many rows a data-parallel group has in a step, and of what kind.
#pragma once

#include <cstdint>

#include "ring/v1/plan.pb.h"

namespace ring {

// Rows of one step whose next token is known and scored. The memory for their
// logits is there besides that for a row of every sequence.
inline constexpr int64_t kMaxScoredRows = 64;

// The tokens of all segments, padding not among them.
inline int64_t RowsOf(const v1::GroupPlan& plan) {
  int64_t rows = 0;
  for (const v1::Segment& segment : plan.segments()) {
    rows += segment.tokens_size();
  }
  return rows;
}

}  // namespace ring
