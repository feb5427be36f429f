// Dispatch; group norm and gate.
//
// FinishRows: a block owns one norm group of one row, a thread 4 of its
// elements at a time. Bound: memory.
#include <algorithm>

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kFinishThreads = 256;

template <typename T, typename Out>
__global__ void __launch_bounds__(kFinishThreads)
    FinishRows(LightningAttentionArgs args) {
  __shared__ float shared[kFinishThreads / kWarp];
  cudaTriggerProgrammaticLaunchCompletion();
  const int64_t row = blockIdx.x;
  const int segment = SegmentOfRow(args.segments, row);
  // Also where there is nothing to do: the next kernel waits for this one
  // alone.
  cudaGridDependencySynchronize();
  if (segment < 0) return;
  const int64_t width = int64_t{args.num_heads} * args.head_dim;
  const int64_t group_width = width / max(args.groups, 1);
  const float* const o = args.workspace + row * width;
  const T* const gate = static_cast<const T*>(args.gate) + row * width;
  Out* const out = static_cast<Out*>(args.out) + row * width;
  const int64_t begin = blockIdx.y * group_width;
  const int64_t end = begin + group_width;
  float squares = 0;
  for (int64_t i = begin + threadIdx.x * 4; i < end; i += kFinishThreads * 4) {
    float x[4];
    LoadFour(o + i, x);
#pragma unroll
    for (int e = 0; e < 4; ++e) squares += x[e] * x[e];
  }
  const float sum = BlockSum(squares, shared);
  float scale = 1.0f;
  if (args.groups == 0) {
    if (threadIdx.x == 0) args.sum_of_squares[row] = sum;
  } else {
    scale = InverseRms(sum, group_width, args.eps);
  }
  for (int64_t i = begin + threadIdx.x * 4; i < end; i += kFinishThreads * 4) {
    float x[4], weight[4], g[4];
    LoadFour(o + i, x);
    LoadFour(args.g_norm + i, weight);
    LoadFour(gate + i, g);
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] *= scale * weight[e] * Sigmoid(g[e]);
    StoreFour(x, out + i);
  }
}

}  // namespace

void LightningAttention(const LightningAttentionArgs& args, Stream* stream) {
  const StepSegments& segments = args.segments;
  if (args.groups > 0) {
    RING_CHECK_EQ(args.num_heads * args.head_dim % (4 * args.groups), 0);
  } else {
    RING_CHECK(args.sum_of_squares != nullptr);
  }
  RING_CHECK(args.head_dim == 64 || args.head_dim == 128)
      << "head_dim " << args.head_dim;
  RING_CHECK_EQ(args.rope.half % 4, 0);
  if (args.rows == 0 || segments.num_segments == 0) return;
  if (segments.num_decode_segments > 0) LightningDecodeSegments(args, stream);
  if (segments.num_segments > segments.num_decode_segments) {
    LightningPromptSegments(args, stream);
  }
  const dim3 grid(Blocks(args.rows, 1),
                  static_cast<unsigned>(std::max(args.groups, 1)));
  WithFloatType(args.qkv_dtype, [&](auto type) {
    WithFloatType(args.out_dtype, [&](auto out) {
      LaunchOverlapped(FinishRows<decltype(type), decltype(out)>, grid,
                       dim3(kFinishThreads), 0, stream, args);
    });
  });
}

}  // namespace ring::cuda
