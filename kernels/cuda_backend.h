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
// All methods must be called on the thread that calls this. CopyToDevice of up
// to a megabyte goes through pinned memory and returns at once; CopyToHost
// into ordinary memory waits for the ops before it. RunStep with a bucket
// records a CUDA graph at the bucket's first use and replays it later.
//
// FAILED_PRECONDITION without a driver or with another GPU, NOT_FOUND if there
// is no such device, RESOURCE_EXHAUSTED if its memory is taken.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device);

}  // namespace ring
