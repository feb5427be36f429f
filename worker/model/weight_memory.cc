#include "worker/model/weight_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/available_memory.h"

namespace ring {
absl::StatusOr<WeightMemory> WeightMemory::Allocate(int64_t bytes) {
  const int64_t available = AvailableMemoryBytes();
  if (bytes > available) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the weights of this rank take ", bytes, " bytes of memory, but only ",
        available, " are available: use more ranks or --weights fp8"));
  }
  return Map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, MADV_HUGEPAGE);
}

absl::StatusOr<WeightMemory> WeightMemory::Reserve(int64_t bytes) {
  return Map(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
             MADV_NOHUGEPAGE);
}

absl::StatusOr<WeightMemory> WeightMemory::Map(int64_t bytes, int flags,
                                               int advice) {
  // A mapping of length 0 is an error; a shard never is empty.
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes),
                      PROT_READ | PROT_WRITE, flags, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot map ", bytes,
        " bytes for the weights: ", std::generic_category().message(errno)));
  }
  (void)::madvise(data, static_cast<size_t>(bytes), advice);
  return WeightMemory(static_cast<std::byte*>(data), bytes);
}

WeightMemory::WeightMemory(WeightMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

WeightMemory& WeightMemory::operator=(WeightMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

WeightMemory::~WeightMemory() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace ring
