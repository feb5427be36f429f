// A thread makes what one Philox block gives to one row of the rectangle: up
// to 8 elements. The levels lie in shared memory, 2 KiB. Bound: the integer
// arithmetic of Philox.
#include "kernels/base/random.h"
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/weights/random_weights.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;

struct Levels {
  float value[kRandomLevels];
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    FillRectangle(RandomWeightsArgs args,
                  const __grid_constant__ Levels levels) {
  __shared__ T shared[kRandomLevels];
  for (int i = threadIdx.x; i < kRandomLevels; i += kThreads) {
    shared[i] = Narrow<T>(levels.value[i]);
  }
  __syncthreads();
  T* const out = static_cast<T*>(args.out);
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    const int64_t begin =
        (args.row_begin + row) * args.tensor_cols + args.col_begin;
    const int64_t block =
        begin / kRandomPerBlock + int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t first = block * kRandomPerBlock;
    if (first >= begin + args.cols) continue;
    const auto words = Philox4x32({static_cast<uint32_t>(block),
                                   static_cast<uint32_t>(block >> 32), 0, 0},
                                  {static_cast<uint32_t>(args.key),
                                   static_cast<uint32_t>(args.key >> 32)});
#pragma unroll
    for (int i = 0; i < kRandomPerBlock; ++i) {
      const int64_t col = first + i - begin;
      const uint32_t bits = words[i / 2] >> (16 * (i % 2));
      if (col >= 0 && col < args.cols) {
        out[row * args.cols + col] = shared[(bits & 0xff) + (bits >> 8 & 0xff)];
      }
    }
  }
}

}  // namespace

void RandomWeights(const RandomWeightsArgs& args, Stream* stream) {
  if (args.rows == 0 || args.cols == 0) return;
  const auto values = RandomWeightLevels(args.mean, args.deviation);
  Levels levels;
  for (int i = 0; i < kRandomLevels; ++i) levels.value[i] = values[i];
  // A row that starts inside a block touches one block more.
  const dim3 grid(Blocks(args.cols / kRandomPerBlock + 2, kThreads),
                  static_cast<unsigned>(args.rows < 65535 ? args.rows : 65535));
  WithFloatType(args.dtype, [&](auto type) {
    FillRectangle<decltype(type)>
        <<<grid, kThreads, 0, stream->get()>>>(args, levels);
  });
  CheckLaunch("FillRectangle");
}

}  // namespace ring::cuda
