// One step's plan as the model reads it.
#pragma once

#include <cstdint>

#include "kernels/step_rows.h"

namespace ring {

struct LogitAdjustment;
struct SamplingRow;

// Host values and device pointers of the step that was loaded last. The
// pointers never change, so a captured graph stays valid.
struct StepInputs {
  // Host values.
  int64_t rows = 0;  // of this group, padding included
  // The first rows, of decode segments at least, that take the products for
  // decode rows: LinearArgs::decode_rows.
  int64_t streamed_rows = 0;
  int num_samples = 0;

  // Device, per row. Padding rows have token -1 and slot -1.
  const int32_t* tokens = nullptr;       // [rows] -1: last token of the slot
  const int32_t* token_slots = nullptr;  // [rows] sequence of the row
  const int32_t* positions = nullptr;    // [rows]
  StepSegments segments;

  // Device, per sample. Padding samples have row and sequence -1.
  const int32_t* sample_rows = nullptr;          // [num_samples]
  const int32_t* sample_sequences = nullptr;     // [num_samples]
  const SamplingRow* sampling = nullptr;         // [num_samples]
  const LogitAdjustment* adjustments = nullptr;  // [num_samples]

  // Device, page table entries to write before the step; padding has index -1.
  const int32_t* page_index = nullptr;   // [num_page_entries] flat index
  const int32_t* page_values = nullptr;  // [num_page_entries]
  int64_t num_page_entries = 0;

  // Device, [all groups' padded rows] in the replicated exchange: 1 for a real
  // row, 0 for padding.
  const int32_t* row_valid = nullptr;
};

}  // namespace ring
