// How the rows of one step belong to sequences: shared by every op that
// touches a sequence's memory.
#pragma once

#include <cstdint>

namespace ring {

// Rows of one step are ordered: first the rows of decode segments, then those
// of prompt segments; within a segment positions ascend by one. All pointers
// are device pointers into the step's plan buffer; entries past the real
// segments are padding with row_count 0 and slots -1.
struct StepSegments {
  // Host values: padded counts only, so that a captured graph fits a bucket.
  int num_segments = 0;
  int num_decode_segments = 0;

  const int32_t* row_begin = nullptr;  // [num_segments] first row
  const int32_t* row_count = nullptr;  // [num_segments]
  const int32_t* position = nullptr;   // [num_segments] of the first row
  const int32_t* state_in = nullptr;   // [num_segments] slot, -1: zero state
  const int32_t* state_out = nullptr;  // [num_segments] slot
  const int32_t* page_row = nullptr;   // [num_segments] row of page_table

  // Page ids of a sequence in order of position. [page rows, page_stride]
  const int32_t* page_table = nullptr;
  int64_t page_stride = 0;
};

// cos and sin of every row's angles, the same for all layers of a step.
struct RopeRows {
  const float* cos = nullptr;  // [rows, half]
  const float* sin = nullptr;  // [rows, half]
  int half = 0;                // rotary_dim / 2: entry i pairs with i + half
};

}  // namespace ring
