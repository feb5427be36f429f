// The backend of one NVIDIA GPU.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace ring {

// Ops are queued on a main and a side stream of GPU `device` and run after the
// call returns. Only GPUs of compute capability 9.0 (Hopper) are accepted,
// since the kernels are built for that alone.
//
// All methods must be called on the thread that calls this. Copies of up to a
// megabyte go through pinned memory and return at once; what comes from the
// device is there after Synchronize. RunStep with a recording makes a CUDA
// graph at its first use and replays it later.
//
// FAILED_PRECONDITION without a driver or with another GPU, NOT_FOUND if there
// is no such device, RESOURCE_EXHAUSTED if its memory is taken.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device);

}  // namespace ring
