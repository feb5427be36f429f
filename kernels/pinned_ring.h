// Pinned host memory that small copies pass through, reused in order.
#pragma once

#include <cstdint>

namespace ring {

// Hands out pieces of a ring and gets them back in the order they were given:
// everything up to a position at once. Positions only grow. Arithmetic on a
// borrowed block of memory; confined to the engine thread.
class PinnedRing {
 public:
  PinnedRing() = default;
  PinnedRing(void* memory, int64_t bytes)
      : memory_(static_cast<char*>(memory)), bytes_(bytes) {}

  // `bytes` of contiguous memory aligned to 256, or null while too much of the
  // ring is given out. REQUIRES: 0 < bytes <= the ring's.
  void* Take(int64_t bytes) {
    int64_t begin = (taken_ + kAlignment - 1) / kAlignment * kAlignment;
    if (begin % bytes_ + bytes > bytes_) {  // would not be contiguous
      begin = (begin / bytes_ + 1) * bytes_;
    }
    if (begin + bytes - returned_ > bytes_) return nullptr;
    taken_ = begin + bytes;
    return memory_ + begin % bytes_;
  }

  // The end of all that was taken so far.
  int64_t position() const { return taken_; }
  // What was taken up to `position` is free again.
  void ReturnUpTo(int64_t position) { returned_ = position; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* memory_ = nullptr;
  int64_t bytes_ = 0;
  int64_t taken_ = 0;
  int64_t returned_ = 0;
};

}  // namespace ring
