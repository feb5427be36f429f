#include "kernels/backend_factory.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cpu_backend.h"
#if RING_WITH_CUDA
#include "kernels/cuda_backend.h"
#endif

namespace ring {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(absl::string_view device,
                                                     int threads) {
  if (device == "cpu") return MakeCpuBackend(threads);
  absl::string_view number = device;
  int gpu = 0;
  if (device != "cuda" && (!absl::ConsumePrefix(&number, "cuda:") ||
                           !absl::SimpleAtoi(number, &gpu) || gpu < 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", device, "\" is no device: use cpu, cuda or cuda:N"));
  }
#if RING_WITH_CUDA
  return MakeCudaBackend(gpu);
#else
  return absl::FailedPreconditionError(
      "this program is built without CUDA: use cpu, or build the preset "
      "\"cuda\"");
#endif
}

}  // namespace ring
