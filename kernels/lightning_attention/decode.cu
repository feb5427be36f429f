// Decode segments: norms, rotation and recurrence.
//
// AdvanceStates: a block owns 32 columns of one head's state of one segment and
// holds them in registers over all rows of the segment; a thread owns 4 columns
// of every 16th row (16 bytes a load, 8 loads in flight for D = 128). While the
// state is on its way, D / 4 threads each prepare q and k of a row, 8 its
// columns of v. Shared memory: 2 D floats and the partial sums of 4 warps,
// under 2 KiB. Bound: memory, every state read and written once.
#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 32;                        // of a block
constexpr int kRowThreads = kColumns / 4;           // side by side in a row
constexpr int kRowStride = kThreads / kRowThreads;  // rows of a pass

// Norm and rotation of a head by D / 4 lanes that have 4 elements each. All
// that has to be loaded is asked for before the first use: a row is all that
// these lanes do, and it takes as long as its loads.
template <typename T, int kDim>
__device__ void PrepareHead(const T* head, const float* weight, float eps,
                            const float* cos, const float* sin, int half,
                            bool silu, float (&x)[4]) {
  constexpr int kLanes = kDim / 4;
  const int i = threadIdx.x % kLanes * 4;
  const bool rotated = i < 2 * half;
  const bool upper = i >= half;
  const int partner = upper ? i - half : i + half;
  float other[4] = {};
  float c[4], s[4];
  float w[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  float w_other[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  LoadFour(head + i, x);
  if (weight != nullptr) LoadFour(weight + i, w);
  if (rotated) {
    LoadFour(head + partner, other);
    LoadFour(cos + (upper ? partner : i), c);
    LoadFour(sin + (upper ? partner : i), s);
    if (weight != nullptr) LoadFour(weight + partner, w_other);
  }
  if (silu) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[e] *= Sigmoid(x[e]);
      other[e] *= Sigmoid(other[e]);
    }
  }
  float scale = 1.0f;
  if (weight != nullptr) {
    float squares = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) squares += x[e] * x[e];
#pragma unroll
    for (int offset = 1; offset < kLanes; offset *= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, offset);
    }
    scale = InverseRms(squares, kDim, eps);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    x[e] *= scale * w[e];
    if (rotated) {
      const float y = other[e] * scale * w_other[e];
      x[e] = x[e] * c[e] + (upper ? y : -y) * s[e];
    }
  }
}

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
    float x[4];
    PrepareHead<T, kDim>(from + matrix * width,
                         matrix == 0 ? args.q_norm : args.k_norm, args.eps,
                         args.rope.cos + row * half, args.rope.sin + row * half,
                         half, args.silu, x);
    if (matrix == 0) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] /= sqrtf(static_cast<float>(kDim));
    }
    StoreFour(x, &qk[matrix][thread % kLanes * 4]);
  } else if (thread < 2 * kLanes + kRowThreads) {
    const int my_column = (thread - 2 * kLanes) * 4;
    float x[1][4];
    LoadFour(from + 2 * width + column + my_column, x[0]);
    if (args.silu) Silu(x);
    StoreFour(x[0], &v[my_column]);
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 7)
    AdvanceStates(LightningAttentionArgs args) {
  constexpr int kPasses = kDim / kRowStride;
  __shared__ __align__(16) float qk[2][kDim];
  __shared__ __align__(16) float v[kColumns];
  __shared__ __align__(16) float partial[kThreads / kWarp][kColumns];
  cudaTriggerProgrammaticLaunchCompletion();
  const int head = blockIdx.x / (kDim / kColumns);
  const int column = blockIdx.x % (kDim / kColumns) * kColumns;
  const int segment = blockIdx.y;
  const StepSegments& segments = args.segments;
  const int row_count = segments.row_count[segment];
  const int64_t first_row = segments.row_begin[segment];
  const int64_t slot_in = segments.state_in[segment];
  const int64_t slot_out = segments.state_out[segment];
  if (row_count == 0) {
    cudaGridDependencySynchronize();
    return;
  }
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int my_row = threadIdx.x / kRowThreads;
  const int my_column = threadIdx.x % kRowThreads * 4;
  const auto state_at = [&](int64_t slot) {
    return args.states +
           ((slot * args.num_heads + head) * kDim + my_row) * kDim + column +
           my_column;
  };

  const float* const in = state_at(slot_in < 0 ? 0 : slot_in);
  // On its way while the kernel before still runs. L2 sees what others store.
  if (threadIdx.x < kDim && slot_in >= 0) {
    PrefetchToL2(state_at(slot_in) +
                     (static_cast<int>(threadIdx.x) - my_row) * kDim -
                     my_column,
                 kColumns * sizeof(float));
  }
  cudaGridDependencySynchronize();
  float4 state[kPasses];
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
    if (t == row_count - 1) {
      float* const out = state_at(slot_out);
#pragma unroll
      for (int p = 0; p < kPasses; ++p) {
        *reinterpret_cast<float4*>(out + int64_t{p} * kRowStride * kDim) =
            state[p];
      }
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
}

template <typename T, int kDim>
void Launch(const LightningAttentionArgs& args, Stream* stream) {
  const dim3 grid(static_cast<unsigned>(args.num_heads) * (kDim / kColumns),
                  static_cast<unsigned>(args.segments.num_decode_segments));
  LaunchOverlapped(AdvanceStates<T, kDim>, grid, kThreads, 0, stream, args);
}

}  // namespace

void LightningDecodeSegments(const LightningAttentionArgs& args,
                             Stream* stream) {
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
