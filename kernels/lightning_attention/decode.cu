// Decode segments: norms, rotation, recurrence, group norm and gate.
//
// AdvanceStates: a block owns 32 columns of one head's state of one segment and
// holds them in registers over all rows of the segment; a thread owns 4 columns
// of every 16th row (16 bytes a load, 8 loads in flight for D = 128). While the
// state is on its way, D / 4 threads each prepare q and k of a row, 8 its
// columns of v. Outputs go to the workspace; the block of a norm group that is
// done last finishes the group's part of the segment's rows. Shared memory: 2 D
// floats and the partial sums of 4 warps, under 2 KiB. Bound: memory, every
// state read and written once.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 32;                        // of a block
constexpr int kRowThreads = kColumns / 4;           // side by side in a row
constexpr int kRowStride = kThreads / kRowThreads;  // rows of a pass

// q (scaled by D^-0.5), k and the block's columns of v of one row. Called by
// the whole block.
template <typename T, int kDim>
__device__ void PrepareRow(const LightningAttentionArgs& args, int64_t row,
                           int head, int column, float (&qk)[2][kDim],
                           float (&v)[kColumns]) {
  constexpr int kLanes = kDim / 4;
  const int64_t width = int64_t{args.num_heads} * kDim;
  const T* const from =
      static_cast<const T*>(args.qkv) + row * 3 * width + int64_t{head} * kDim;
  const int thread = threadIdx.x;
  if (thread < 2 * kLanes) {
    const int matrix = thread / kLanes;
    const int half = args.rope.half;
    float x[1][4];
    LoadHeadPart<kLanes>(from + matrix * width, x);
    if (args.silu) Silu(x);
    NormAndRotatePart<kLanes>(from + matrix * width,
                              matrix == 0 ? args.q_norm : args.k_norm, args.eps,
                              args.rope.cos + row * half,
                              args.rope.sin + row * half, half, args.silu, x);
    if (matrix == 0) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[0][e] /= sqrtf(static_cast<float>(kDim));
    }
    StoreFour(x[0], &qk[matrix][HeadColumn<kLanes>(0)]);
  } else if (thread < 2 * kLanes + kRowThreads) {
    const int my_column = (thread - 2 * kLanes) * 4;
    float x[1][4];
    LoadFour(from + 2 * width + column + my_column, x[0]);
    if (args.silu) Silu(x);
    StoreFour(x[0], &v[my_column]);
  }
}

// Group norm and gate of one row's group. The outputs come from other blocks.
template <typename T, typename Out>
__device__ void FinishGroup(const LightningAttentionArgs& args, int64_t row,
                            int group, int group_width, float* shared) {
  const int64_t begin =
      row * args.num_heads * args.head_dim + int64_t{group} * group_width;
  const float* const o = Outputs(args) + begin;
  const T* const gate = static_cast<const T*>(args.gate) + begin;
  const float* const weight = args.g_norm + group * group_width;
  Out* const out = static_cast<Out*>(args.out) + begin;
  float squares = 0;
  for (int i = threadIdx.x * 4; i < group_width; i += kThreads * 4) {
    const float4 x = __ldcg(reinterpret_cast<const float4*>(o + i));
    squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
  const float sum = BlockSum(squares, shared);
  float scale = 1.0f;
  if (args.groups > 0) {
    scale = InverseRms(sum, group_width, args.eps);
  } else if (threadIdx.x == 0) {
    args.sum_of_squares[row] = sum;
  }
  for (int i = threadIdx.x * 4; i < group_width; i += kThreads * 4) {
    const float4 x = __ldcg(reinterpret_cast<const float4*>(o + i));
    float y[4] = {x.x, x.y, x.z, x.w};
    float w[4], g[4];
    LoadFour(weight + i, w);
    LoadFour(gate + i, g);
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] *= scale * w[e] * Sigmoid(g[e]);
    StoreFour(y, out + i);
  }
  __syncthreads();
}

template <typename T, typename Out, int kDim>
__global__ void __launch_bounds__(kThreads, 7)
    AdvanceStates(LightningAttentionArgs args) {
  constexpr int kPasses = kDim / kRowStride;
  __shared__ __align__(16) float qk[2][kDim];
  __shared__ __align__(16) float v[kColumns];
  __shared__ __align__(16) float partial[kThreads / kWarp][kColumns];
  __shared__ bool is_last;
  const int head = blockIdx.x / (kDim / kColumns);
  const int column = blockIdx.x % (kDim / kColumns) * kColumns;
  const int segment = blockIdx.y;
  const StepSegments& segments = args.segments;
  const int row_count = segments.row_count[segment];
  const int64_t first_row = segments.row_begin[segment];
  const int64_t slot_in = segments.state_in[segment];
  const int64_t slot_out = segments.state_out[segment];
  if (row_count == 0) return;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int my_row = threadIdx.x / kRowThreads;
  const int my_column = threadIdx.x % kRowThreads * 4;
  const auto state_at = [&](int64_t slot) {
    return args.states +
           ((slot * args.num_heads + head) * kDim + my_row) * kDim + column +
           my_column;
  };

  float4 state[kPasses];
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
    PrepareRow<T, kDim>(args, row, head, column, qk, v);
    __syncthreads();
    const float4 value = *reinterpret_cast<const float4*>(&v[my_column]);
    float4 o = {};
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      const float query = qk[0][my_row + p * kRowStride];
      const float key = qk[1][my_row + p * kRowStride];
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
      Outputs(
          args)[(row * args.num_heads + head) * kDim + column + threadIdx.x] =
          sum;
    }
  }

  // The warp that wrote the outputs counts the block before it writes the
  // state: the fence would wait for that.
  const int groups = max(args.groups, 1);
  const int group_width = args.num_heads * kDim / groups;
  const int group_blocks = group_width / kColumns;
  const int group = blockIdx.x / group_blocks;
  if (warp == 0) {
    __threadfence();
    __syncwarp();
    if (lane == 0) {
      const unsigned before =
          atomicInc(Counters(args) + segment * groups + group,
                    static_cast<unsigned>(group_blocks) - 1);
      is_last = before == static_cast<unsigned>(group_blocks) - 1;
    }
  }
  float* const out = state_at(slot_out);
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    *reinterpret_cast<float4*>(out + int64_t{p} * kRowStride * kDim) = state[p];
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int t = 0; t < row_count; ++t) {
    FinishGroup<T, Out>(args, first_row + t, group, group_width,
                        &partial[0][0]);
  }
}

template <typename T, int kDim>
void Launch(const LightningAttentionArgs& args, Stream* stream) {
  const dim3 grid(static_cast<unsigned>(args.num_heads) * (kDim / kColumns),
                  static_cast<unsigned>(args.segments.num_decode_segments));
  WithFloatType(args.out_dtype, [&](auto out) {
    AdvanceStates<T, decltype(out), kDim>
        <<<grid, kThreads, 0, stream->get()>>>(args);
  });
  CheckLaunch("AdvanceStates");
}

}  // namespace

void LightningDecodeSegments(const LightningAttentionArgs& args,
                             Stream* stream) {
  const int64_t groups = std::max(args.groups, 1);
  RING_CHECK_LE(groups * args.segments.num_decode_segments, kLightningCounters);
  RING_CHECK_EQ(args.num_heads * args.head_dim % (groups * kColumns), 0);
  WithFloatType(args.qkv_dtype, [&](auto type) {
    using T = decltype(type);
    if (args.head_dim == 64) {
      Launch<T, 64>(args, stream);
    } else {
      Launch<T, 128>(args, stream);
    }
  });
}

}  // namespace ring::cuda
