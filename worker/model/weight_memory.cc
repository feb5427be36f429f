#include "worker/model/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ring {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

int64_t ReadMemAvailable() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return kUnlimited;
}

// A file with one number, as those of control groups; "max" is no number.
int64_t ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t number = 0;
  return file >> number ? number : kUnlimited;
}

int64_t ReadGroupAvailable(const char* limit_path, const char* usage_path) {
  const int64_t limit = ReadNumber(limit_path);
  const int64_t usage = ReadNumber(usage_path);
  if (limit == kUnlimited || usage == kUnlimited) return kUnlimited;
  return std::max<int64_t>(limit - usage, 0);
}

}  // namespace

int64_t AvailableMemoryBytes() {
  return std::min(
      {ReadMemAvailable(),
       ReadGroupAvailable("/sys/fs/cgroup/memory.max",
                          "/sys/fs/cgroup/memory.current"),
       ReadGroupAvailable("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                          "/sys/fs/cgroup/memory/memory.usage_in_bytes")});
}

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
