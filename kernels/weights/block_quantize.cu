// A block of 256 threads owns one scale block and keeps its elements in
// registers, 64 a thread, between finding the largest and dividing. Bound:
// memory, x read and q written once.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/weight_matrix.h"
#include "kernels/weights/block_quantize.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = static_cast<int>(kScaleBlock);
constexpr int kRowsPerPass = kThreads / kBlock;
constexpr int kPasses = kBlock / kRowsPerPass;
constexpr float kFloat8Max = 448;
constexpr float kMinAmax = 1e-4f;

// Neighbouring threads own neighbouring columns.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantizeScaleBlock(QuantizeBlocksArgs args) {
  __shared__ float largest[kThreads / kWarp];
  const int64_t col = int64_t{blockIdx.x} * kBlock + threadIdx.x % kBlock;
  const int64_t first_row = int64_t{blockIdx.y} * kBlock + threadIdx.x / kBlock;
  const T* const x = static_cast<const T*>(args.x);
  float values[kPasses];
  float amax = kMinAmax;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t row = first_row + pass * kRowsPerPass;
    values[pass] = row < args.rows && col < args.cols
                       ? Widen(x[row * args.cols + col])
                       : 0.0f;
    amax = fmaxf(amax, fabsf(values[pass]));
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, offset));
  }
  if (threadIdx.x % kWarp == 0) largest[threadIdx.x / kWarp] = amax;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    amax = fmaxf(amax, largest[warp]);
  }
  const float scale = amax / kFloat8Max;
  if (threadIdx.x == 0) {
    args.scales[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = scale;
  }
  if (col < args.col_begin || col >= args.col_end) return;
  const int64_t width = args.col_end - args.col_begin;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t row = first_row + pass * kRowsPerPass;
    if (row < args.row_begin || row >= args.row_end) continue;
    args.q[(row - args.row_begin) * width + (col - args.col_begin)].bits =
        __nv_cvt_float_to_fp8(values[pass] / scale, __NV_SATFINITE, __NV_E4M3);
  }
}

}  // namespace

void QuantizeBlocks(const QuantizeBlocksArgs& args, Stream* stream) {
  if (args.rows == 0 || args.cols == 0) return;
  const dim3 grid(Blocks(args.cols, kBlock), Blocks(args.rows, kBlock));
  RING_CHECK_LE(grid.y, 65535u);
  WithFloatType(args.x_dtype, [&](auto type) {
    QuantizeScaleBlock<decltype(type)>
        <<<grid, kThreads, 0, stream->get()>>>(args);
  });
  CheckLaunch("QuantizeScaleBlock");
}

}  // namespace ring::cuda
