// Reads the slices of a plan out of a checkpoint into a device's memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/model/load_plan.h"
#include "worker/model/load_tasks.h"
#include "worker/model_files/checkpoint.h"

namespace ring {

// As ReadSlices of checkpoint_reader.h, with `device`, memory of `backend`, to
// be filled: options.threads threads read into pinned buffers while the calling
// one, the engine thread, sends full ones to the device, where matrices are
// also quantised. `views` is plan.memory_bytes() of address space in which the
// plan was bound; nothing is read from or written to it.
//
// RESOURCE_EXHAUSTED if buffers cannot be had, DATA_LOSS names file and place.
absl::StatusOr<int64_t> ReadSlicesTo(const LoadPlan& plan,
                                     const Checkpoint& checkpoint,
                                     const LoadOptions& options,
                                     Backend* backend, std::byte* device,
                                     std::byte* views);

}  // namespace ring
