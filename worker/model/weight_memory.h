// The one allocation that holds a rank's weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace ring {

// Owns page-aligned memory, huge pages where the system has them: the kernels
// that stream over it then take few TLB misses. Pages start as zeros and take
// no room before they are written. Thread-safe as plain memory is.
class WeightMemory {
 public:
  // RESOURCE_EXHAUSTED, with both numbers, when `bytes` are more than this
  // process can get now. Ranks of one host ask one by one and cannot see what
  // the others are about to fill.
  static absl::StatusOr<WeightMemory> Allocate(int64_t bytes);

  // Addresses alone: whoever writes to a page takes its memory then. For
  // shards that live elsewhere and keep a few tables here while loading.
  static absl::StatusOr<WeightMemory> Reserve(int64_t bytes);

  WeightMemory(WeightMemory&& other) noexcept;
  WeightMemory& operator=(WeightMemory&& other) noexcept;
  ~WeightMemory();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  WeightMemory(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  static absl::StatusOr<WeightMemory> Map(int64_t bytes, int flags, int advice);

  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace ring
