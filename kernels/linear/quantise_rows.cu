// Activations as e4m3. A thread owns 16 columns of a row, 8 neighbouring
// threads the 128 that share a scale. Bound: bandwidth.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/quantise.cuh"
#include "kernels/linear/tensor_gemm.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 16;  // columns of a thread
constexpr int kLanes = kScaleBlock / kUnit;

__global__ void __launch_bounds__(kThreads) Quantise(QuantiseRowsArgs args) {
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t units = args.cols / kUnit;
  const int64_t row = unit / units;
  // A warp's last threads may have no row, but take part in the shuffles.
  const bool valid = row < args.rows;
  const int64_t column = unit % units * kUnit;
  float x[kUnit] = {};
  if (valid) {
    Load(static_cast<const BFloat16*>(args.x) + row * args.cols + column, x);
  }
  float max_abs = 0;
#pragma unroll
  for (float value : x) max_abs = fmaxf(max_abs, fabsf(value));
#pragma unroll
  for (int lane = 1; lane < kLanes; lane *= 2) {
    max_abs = fmaxf(max_abs, __shfl_xor_sync(kAllLanes, max_abs, lane));
  }
  if (!valid) return;
  const float inverse = InverseScale(max_abs);
  uint32_t words[kUnit / 4];
#pragma unroll
  for (int i = 0; i < kUnit / 4; ++i) {
    words[i] = QuantisePair(x[4 * i] * inverse, x[4 * i + 1] * inverse) |
               QuantisePair(x[4 * i + 2] * inverse, x[4 * i + 3] * inverse)
                   << 16;
  }
  const int64_t stride = ScaleStride(args.cols);
  for (int copy = 0; copy < args.places.copies; ++copy) {
    const int64_t to = args.places.place == nullptr
                           ? row
                           : args.places.place[row * args.places.copies + copy];
    if (to < 0) continue;
    *reinterpret_cast<uint4*>(static_cast<uint8_t*>(args.quantised) +
                              to * args.cols + column) =
        make_uint4(words[0], words[1], words[2], words[3]);
    if (column % kScaleBlock == 0) {
      args.scales[to * stride + column / kScaleBlock] = max_abs / kMaxE4M3;
    }
  }
}

}  // namespace

void QuantiseRows(const QuantiseRowsArgs& args, Stream* stream) {
  RING_CHECK_EQ(args.cols % kScaleBlock, 0);
  if (args.rows == 0) return;
  Quantise<<<Blocks(args.rows * (args.cols / kUnit), kThreads), kThreads, 0,
             stream->get()>>>(args);
  CheckLaunch("Quantise");
}

}  // namespace ring::cuda
