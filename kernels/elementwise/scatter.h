// Small updates of tables that live on the device.
#pragma once

#include <cstdint>

namespace ring {

class ThreadPool;

// out[index[i]] = values[i] for i in order; entries with index -1 are padding.
// Page table entries and last-token buffers are kept up to date with it.
struct ScatterIntsArgs {
  const int32_t* index = nullptr;   // [count]
  const int32_t* values = nullptr;  // [count]
  int64_t count = 0;
  int32_t* out = nullptr;
};

namespace cpu {
void ScatterInts(const ScatterIntsArgs& args, ThreadPool* pool);
}
namespace cuda {
class Stream;
void ScatterInts(const ScatterIntsArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
