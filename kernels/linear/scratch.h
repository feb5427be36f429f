// Memory that an op needs while it runs and that no caller hands in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ring {

// Grows to the largest request and keeps it: after the first step of a size
// nothing is allocated. Declared thread_local by its users, one per purpose.
class Scratch {
 public:
  // `count` elements on a 64-byte boundary, contents undefined, valid until
  // the next call.
  template <typename T>
  T* Get(int64_t count) {
    const size_t lines =
        (static_cast<size_t>(count) * sizeof(T) + sizeof(Line) - 1) /
        sizeof(Line);
    if (lines > lines_.size()) lines_.resize(lines);
    return reinterpret_cast<T*>(lines_.data());
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> lines_;
};

}  // namespace ring
