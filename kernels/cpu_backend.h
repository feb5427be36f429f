// The backend of machines without a GPU, and the reference for those with one.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace ring {

// Runs every op at once on `threads` threads (>= 1, the caller included).
// "Device" memory is plain host memory. Vector instructions are chosen at
// construction from what the processor has.
std::unique_ptr<Backend> MakeCpuBackend(int threads);

}  // namespace ring
