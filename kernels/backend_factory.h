// The backend that a command line names.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"

namespace ring {

// `device`: "cpu", "cuda" (GPU 0) or "cuda:N". `threads` >= 1 is for the CPU
// alone. INVALID_ARGUMENT for any other name; FAILED_PRECONDITION for a GPU if
// the program is built without CUDA; errors of MakeCudaBackend.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(absl::string_view device,
                                                     int threads);

}  // namespace ring
