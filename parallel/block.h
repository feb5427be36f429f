// Memory that goes to a rank, and memory that comes from one.
#pragma once

#include <cstdint>

namespace ring {

struct SendBlock {
  int to = 0;
  const void* data = nullptr;
  int64_t bytes = 0;
};

struct RecvBlock {
  int from = 0;
  void* data = nullptr;
  int64_t bytes = 0;
};

}  // namespace ring
