// Every thread has 8 loads of 16 bytes in flight and writes only if their
// folded bits match a value that random data never gives.
#include <algorithm>
#include <chrono>

#include "kernels/cuda_stream.cuh"
#include "tests/bench/device_read.h"

namespace ring {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;

__global__ void ReadAll(const uint4* data, int64_t n, unsigned* sink) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  unsigned folded = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += kLoads * stride) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      loaded[k] = i + k * stride < n ? data[i + k * stride] : uint4{};
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      folded += loaded[k].x ^ loaded[k].y ^ loaded[k].z ^ loaded[k].w;
    }
  }
  if (folded == 0x9e3779b9u && n == 1) *sink = folded;
}

}  // namespace

double SecondsToRead(const void* data, int64_t bytes) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPasses = 7;
  constexpr int kRepeats = 4;
  double best = 1e9;
  for (int pass = 0; pass < kPasses; ++pass) {
    RING_CUDA_CHECK(cudaDeviceSynchronize());
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kRepeats; ++i) {
      ReadAll<<<132 * 8, kThreads>>>(static_cast<const uint4*>(data),
                                     bytes / 16, nullptr);
      cuda::CheckLaunch("ReadAll");
    }
    RING_CUDA_CHECK(cudaDeviceSynchronize());
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best = std::min(best, elapsed.count() / kRepeats);
  }
  return best;
}

}  // namespace ring
