// Dispatch; group norm and gate.
//
// FinishRows: a block owns one norm group of one row, a thread 4 of its
// elements at a time. Bound: memory.
// FinishManyRows, for steps with prompts: a warp owns one norm group of 4 rows,
// of which it has all elements in registers. Bound: memory.
#include <algorithm>

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kFinishThreads = 256;
constexpr int kWarpRows = 4;          // of FinishManyRows
constexpr int kMaxWarpParts = 8;      // of a norm group
constexpr int kWarpPart = 4 * kWarp;  // elements

// The sigmoid, approximate where the result is rounded to bf16.
template <typename Out>
__device__ float GateOf(float x) {
  return sizeof(Out) == 2 ? __fdividef(1.0f, 1.0f + __expf(-x)) : Sigmoid(x);
}

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
  const int width = args.num_heads * args.head_dim;
  const int group_width = width / max(args.groups, 1);
  const float* const o = args.workspace + row * width;
  const T* const gate = static_cast<const T*>(args.gate) + row * width;
  Out* const out = static_cast<Out*>(args.out) + row * width;
  const int begin = static_cast<int>(blockIdx.y) * group_width;
  const int end = begin + group_width;
  float squares = 0;
  for (int i = begin + static_cast<int>(threadIdx.x) * 4; i < end;
       i += kFinishThreads * 4) {
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
  for (int i = begin + static_cast<int>(threadIdx.x) * 4; i < end;
       i += kFinishThreads * 4) {
    float x[4], weight[4], g[4];
    LoadFour(o + i, x);
    LoadFour(args.g_norm + i, weight);
    LoadFour(gate + i, g);
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] *= scale * weight[e] * GateOf<Out>(g[e]);
    StoreFour(x, out + i);
  }
}

template <typename T, typename Out>
__global__ void __launch_bounds__(kFinishThreads)
    FinishManyRows(LightningAttentionArgs args) {
  const int width = args.num_heads * args.head_dim;
  const int group_width = width / max(args.groups, 1);
  const int lane = threadIdx.x % kWarp;
  const int begin = static_cast<int>(blockIdx.y) * group_width;
  const auto for_parts = [&](auto body) {
#pragma unroll
    for (int part = 0; part < kMaxWarpParts; ++part) {
      const int i = part * kWarpPart + lane * 4;
      if (i < group_width) body(part, begin + i);
    }
  };
  float weight[kMaxWarpParts][4];
  for_parts([&](int part, int i) { LoadFour(args.g_norm + i, weight[part]); });
  const int64_t first =
      (int64_t{blockIdx.x} * kFinishThreads + threadIdx.x) / kWarp * kWarpRows;
  for (int64_t row = first; row < min(first + kWarpRows, args.rows); ++row) {
    if (SegmentOfRow(args.segments, row) < 0) continue;
    const float* const o = args.workspace + row * width;
    const T* const gate = static_cast<const T*>(args.gate) + row * width;
    Out* const out = static_cast<Out*>(args.out) + row * width;
    float x[kMaxWarpParts][4], g[kMaxWarpParts][4];
    for_parts([&](int part, int i) { LoadFour(o + i, x[part]); });
    for_parts([&](int part, int i) { LoadFour(gate + i, g[part]); });
    float squares = 0;
    for_parts([&](int part, int) {
#pragma unroll
      for (int e = 0; e < 4; ++e) squares += x[part][e] * x[part][e];
    });
    const float sum = WarpSum(squares);
    float scale = 1.0f;
    if (args.groups == 0) {
      if (lane == 0) args.sum_of_squares[row] = sum;
    } else {
      scale = InverseRms(sum, group_width, args.eps);
    }
    for_parts([&](int part, int i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[part][e] *= scale * weight[part][e] * GateOf<Out>(g[part][e]);
      }
      StoreFour(x[part], out + i);
    });
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
  const bool prompts = segments.num_segments > segments.num_decode_segments;
  if (prompts) LightningPromptSegments(args, stream);
  const unsigned groups = static_cast<unsigned>(std::max(args.groups, 1));
  const bool by_warp = prompts && args.num_heads * args.head_dim / groups <=
                                      kMaxWarpParts * kWarpPart;
  WithFloatType(args.qkv_dtype, [&](auto type) {
    WithFloatType(args.out_dtype, [&](auto out) {
      using T = decltype(type);
      using Out = decltype(out);
      if (by_warp) {
        const dim3 grid(Blocks(args.rows, kFinishThreads / kWarp * kWarpRows),
                        groups);
        FinishManyRows<T, Out>
            <<<grid, kFinishThreads, 0, stream->get()>>>(args);
        CheckLaunch("FinishManyRows");
      } else {
        LaunchOverlapped(FinishRows<T, Out>, dim3(Blocks(args.rows, 1), groups),
                         dim3(kFinishThreads), 0, stream, args);
      }
    });
  });
}

}  // namespace ring::cuda
