// One block walks the entries in order, a barrier after each strip of threads;
// within a strip the last of equal indices wins. A step has a few hundred
// entries.
#include "kernels/cuda_stream.cuh"
#include "kernels/elementwise/scatter.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void ScatterInOrder(ScatterIntsArgs args) {
  __shared__ int32_t strip[kThreads];
  for (int64_t begin = 0; begin < args.count; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const int32_t index = i < args.count ? args.index[i] : -1;
    strip[threadIdx.x] = index;
    __syncthreads();
    bool last = index >= 0;
    for (int later = threadIdx.x + 1; later < kThreads && last; ++later) {
      last = strip[later] != index;
    }
    if (last) args.out[index] = args.values[i];
    __syncthreads();
  }
}

}  // namespace

void ScatterInts(const ScatterIntsArgs& args, Stream* stream) {
  if (args.count == 0) return;
  ScatterInOrder<<<1, kThreads, 0, stream->get()>>>(args);
  CheckLaunch("ScatterInOrder");
}

}  // namespace ring::cuda
