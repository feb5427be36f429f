// The recurrence, with norms and rotation of q and k in front of it; then group
// norm and gate, which need all heads of a row.
//
// AdvanceStates: a block owns 32 columns of one head's state of one segment and
// holds them in registers over all rows of the segment; a thread owns 4 columns
// of every 16th row (16 bytes a load, 8 loads in flight for D = 128). Warps 0
// and 1 prepare q and k of a row while the state is on its way. Shared memory:
// 4 D floats and the partial sums of 4 warps, under 4 KiB. Bound for decode:
// memory, every state read and written once.
// FinishRows: a block owns one norm group of one row.
#include <algorithm>

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_attention.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 32;                          // of a block
constexpr int kLoadColumns = 4;                       // of a thread
constexpr int kRowThreads = kColumns / kLoadColumns;  // side by side in a row
constexpr int kRowStride = kThreads / kRowThreads;    // rows of a pass
constexpr int kFinishThreads = 512;

// q (scaled by D^-0.5), k and the block's columns of v of one row, in shared
// memory. Called by the whole block; warps 0, 1 and 2 work.
template <typename T, int kDim>
__device__ void PrepareRow(const LightningAttentionArgs& args, int64_t row,
                           int head, int column, float (&q)[kDim],
                           float (&k)[kDim], float (&v)[kColumns],
                           float (&exchange)[2][kDim]) {
  constexpr int kEach = kDim / kWarp;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t width = int64_t{args.num_heads} * kDim;
  const T* const from =
      static_cast<const T*>(args.qkv) + row * 3 * width + int64_t{head} * kDim;
  if (warp < 2) {
    float x[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      x[e] = Widen(from[warp * width + e * kWarp + lane]);
      if (args.silu) x[e] *= Sigmoid(x[e]);
    }
    const int half = args.rope.half;
    NormAndRotateHead(x, warp == 0 ? args.q_norm : args.k_norm, args.eps,
                      args.rope.cos + row * half, args.rope.sin + row * half,
                      half, exchange[warp]);
    const float scale =
        warp == 0 ? 1.0f / sqrtf(static_cast<float>(kDim)) : 1.0f;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      (warp == 0 ? q : k)[e * kWarp + lane] = x[e] * scale;
    }
  } else if (warp == 2) {
    float x = Widen(from[2 * width + column + lane]);
    if (args.silu) x *= Sigmoid(x);
    v[lane] = x;
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    AdvanceStates(LightningAttentionArgs args) {
  constexpr int kPasses = kDim / kRowStride;
  __shared__ float q[kDim];
  __shared__ float k[kDim];
  __shared__ float v[kColumns];
  __shared__ float exchange[2][kDim];
  __shared__ float partial[kThreads / kWarp][kColumns];
  const int head = blockIdx.x / (kDim / kColumns);
  const int column = blockIdx.x % (kDim / kColumns) * kColumns;
  const int segment = blockIdx.y;
  const StepSegments& segments = args.segments;
  const int row_count = segments.row_count[segment];
  if (row_count == 0) return;
  const int64_t first_row = segments.row_begin[segment];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int my_row = threadIdx.x / kRowThreads;
  const int my_column = threadIdx.x % kRowThreads * kLoadColumns;
  const auto state_at = [&](int64_t slot) {
    return args.states +
           ((slot * args.num_heads + head) * kDim + my_row) * kDim + column +
           my_column;
  };

  float4 state[kPasses];
  const int64_t slot_in = segments.state_in[segment];
  const float* const in = state_at(slot_in < 0 ? 0 : slot_in);
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    state[p] = slot_in < 0 ? float4{}
                           : *reinterpret_cast<const float4*>(
                                 in + int64_t{p} * kRowStride * kDim);
  }

  const float decay = expf(-args.decay_rates[head]);
  for (int t = 0; t < row_count; ++t) {
    const int64_t row = first_row + t;
    PrepareRow<T, kDim>(args, row, head, column, q, k, v, exchange);
    __syncthreads();
    const float4 value = *reinterpret_cast<const float4*>(&v[my_column]);
    float4 o = {};
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      const float key = k[my_row + p * kRowStride];
      const float query = q[my_row + p * kRowStride];
      float4& s = state[p];
      s.x = decay * s.x + key * value.x;
      s.y = decay * s.y + key * value.y;
      s.z = decay * s.z + key * value.z;
      s.w = decay * s.w + key * value.w;
      o.x += query * s.x;
      o.y += query * s.y;
      o.z += query * s.z;
      o.w += query * s.w;
    }
    // The four rows of a warp, then the warps.
#pragma unroll
    for (int offset = kRowThreads; offset < kWarp; offset *= 2) {
      o.x += __shfl_xor_sync(kAllLanes, o.x, offset);
      o.y += __shfl_xor_sync(kAllLanes, o.y, offset);
      o.z += __shfl_xor_sync(kAllLanes, o.z, offset);
      o.w += __shfl_xor_sync(kAllLanes, o.w, offset);
    }
    if (lane < kRowThreads) {
      *reinterpret_cast<float4*>(&partial[warp][my_column]) = o;
    }
    __syncthreads();
    if (threadIdx.x < kColumns) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kThreads / kWarp; ++w) sum += partial[w][threadIdx.x];
      args.workspace[(row * args.num_heads + head) * kDim + column +
                     threadIdx.x] = sum;
    }
  }

  float* const out = state_at(segments.state_out[segment]);
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    *reinterpret_cast<float4*>(out + int64_t{p} * kRowStride * kDim) = state[p];
  }
}

template <typename T, typename Out>
__global__ void __launch_bounds__(kFinishThreads)
    FinishRows(LightningAttentionArgs args) {
  __shared__ float shared[kFinishThreads / kWarp];
  const int64_t row = blockIdx.x;
  if (SegmentOfRow(args.segments, row) < 0) return;
  const int64_t width = int64_t{args.num_heads} * args.head_dim;
  const int64_t group_width = width / max(args.groups, 1);
  const float* const o = args.workspace + row * width;
  const T* const gate = static_cast<const T*>(args.gate) + row * width;
  Out* const out = static_cast<Out*>(args.out) + row * width;
  const int64_t begin = blockIdx.y * group_width;
  const int64_t end = begin + group_width;
  float squares = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kFinishThreads) {
    squares += o[i] * o[i];
  }
  const float sum = BlockSum(squares, shared);
  float scale = 1.0f;
  if (args.groups == 0) {
    if (threadIdx.x == 0) args.sum_of_squares[row] = sum;
  } else {
    scale = InverseRms(sum, group_width, args.eps);
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += kFinishThreads) {
    out[i] =
        Narrow<Out>(o[i] * scale * args.g_norm[i] * Sigmoid(Widen(gate[i])));
  }
}

template <typename T, int kDim>
void LaunchAdvance(const LightningAttentionArgs& args, Stream* stream) {
  const dim3 grid(static_cast<unsigned>(args.num_heads) * (kDim / kColumns),
                  static_cast<unsigned>(args.segments.num_segments));
  AdvanceStates<T, kDim><<<grid, kThreads, 0, stream->get()>>>(args);
  CheckLaunch("AdvanceStates");
}

}  // namespace

void LightningAttention(const LightningAttentionArgs& args, Stream* stream) {
  if (args.groups > 0) {
    RING_CHECK_EQ(args.num_heads * args.head_dim % args.groups, 0);
  } else {
    RING_CHECK(args.sum_of_squares != nullptr);
  }
  RING_CHECK(args.head_dim == 64 || args.head_dim == 128)
      << "head_dim " << args.head_dim;
  if (args.rows == 0 || args.segments.num_segments == 0) return;
  WithFloatType(args.qkv_dtype, [&](auto type) {
    using T = decltype(type);
    if (args.head_dim == 64) {
      LaunchAdvance<T, 64>(args, stream);
    } else {
      LaunchAdvance<T, 128>(args, stream);
    }
    const dim3 grid(Blocks(args.rows, 1),
                    static_cast<unsigned>(std::max(args.groups, 1)));
    WithFloatType(args.out_dtype, [&](auto out) {
      FinishRows<T, decltype(out)>
          <<<grid, kFinishThreads, 0, stream->get()>>>(args);
    });
    CheckLaunch("FinishRows");
  });
}

}  // namespace ring::cuda
