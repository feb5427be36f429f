// Reads the slices of a plan out of a checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/model/load_plan.h"
#include "worker/model/load_tasks.h"
#include "worker/model_files/checkpoint.h"

namespace ring {

// Fills `memory` (plan.memory_bytes()) with the plan's slices and returns the
// bytes read: the plan's read_bytes(), no others.
//
// Whole rows are read in runs of up to 16 MB, neighbouring tensors together,
// straight to their place. A slice of columns is read row by row, and the
// system is asked to fetch its span in advance: the process still takes only
// its own bytes, the device sees large reads, and the ranks of a host share
// the pages. Reading the span and throwing most of it away would cost tp
// times the bytes.
//
// DATA_LOSS names the file and the place.
absl::StatusOr<int64_t> ReadSlices(const LoadPlan& plan,
                                   const Checkpoint& checkpoint,
                                   const LoadOptions& options,
                                   std::byte* memory);

}  // namespace ring
