// Prompt segments, in chunks of 64 rows on tensor cores. With C rows in a
// chunk, local indices i, j and incoming state S:
//   A[i, j] = (q_i . k_j) exp(-s (i - j)) for j <= i, else 0
//   o_i     = sum_j A[i, j] v_j + exp(-s (i + 1)) q_i S
//   S       = exp(-s C) S + sum_j exp(-s (C - 1 - j)) outer(k_j, v_j)
// Every exponent is a difference of row numbers within a chunk, so nothing
// overflows whatever the rate.
//
// Long segments are cut into blocks of rows that work side by side:
//   WalkChunks<..., false>: what a block alone adds to a state of zero
//   StartStates: from these, the state at which every block starts
//   WalkChunks<..., true>: outputs of a block, and the segment's last state
//
// WalkChunks: a block of D / 16 warps owns one head and one block of rows and
// keeps the transposed state in registers as sums in fp32: warp w has 16
// columns of v, 16 w on, so that its sums are the right factor of q S without
// leaving the registers. q, k and v are normed, rotated and rounded on their
// way to shared memory. Products that enter the state take k and v as pairs of
// bf16 (high and rest, 16 bits of mantissa, 3 products); the others do so too
// if the result is fp32 (kExact), else they take bf16. Shared memory for D =
// 128: 69 KiB without outputs, 95 KiB for a bf16 result (two blocks a
// multiprocessor), 121 KiB for fp32. Bound: latency, with a third of the issue
// slots and half of the memory's bandwidth in use; k and v are read twice if
// the segment is cut. StartStates: a thread owns 4 elements of one head's state
// in all blocks of a segment.
#include <type_traits>

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"
#include "kernels/tensor_core.cuh"

namespace ring::cuda {
namespace {

constexpr int kChunk = 64;
constexpr int kPad = 8;  // elements: keeps rows apart in the banks
constexpr int kScanThreads = 256;

// Where the state of the block of rows that begins at `row` lies in the
// workspace, behind the outputs. Blocks of segments that have several begin at
// least block_rows apart, but the last of one segment and the first of the next
// may be closer.
__device__ float* BlockState(const LightningAttentionArgs& args, int block_rows,
                             int64_t row, bool first_of_segment, int head) {
  const int64_t slot = row / block_rows * 2 + (first_of_segment ? 1 : 0);
  return args.workspace +
         (args.rows + (slot * args.head_dim)) * args.num_heads * args.head_dim +
         int64_t{head} * args.head_dim * args.head_dim;
}

// A chunk of one head, with zeros behind the segment's last row.
template <int kDim>
using ChunkRows = BFloat16[kChunk][kDim + kPad];
template <int kDim>
struct StateTiles {
  alignas(16) ChunkRows<kDim> k[2];  // high and rest
  alignas(16) ChunkRows<kDim> v[2];  // likewise
  float power[kChunk + 1];           // exp(-s n)
};
template <int kDim, bool kExact>
struct OutputTiles : StateTiles<kDim> {
  static constexpr int kCopies = kExact ? 2 : 1;
  alignas(16) ChunkRows<kDim> q[kCopies];
  alignas(16) BFloat16 scores[kCopies][kChunk][kChunk + kPad];
};
template <int kDim, bool kExact, bool kOutput>
using Tiles =
    std::conditional_t<kOutput, OutputTiles<kDim, kExact>, StateTiles<kDim>>;

// Stores x, the lane's part of a row, as high parts and, for two copies, rests.
template <int kDim, int kCopies>
__device__ void StorePart(const float (&x)[kDim / 32][4], ChunkRows<kDim>* to,
                          int row) {
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const int column = HeadColumn(j);
    const uint2 high = {PackBf16(x[j][0], x[j][1]), PackBf16(x[j][2], x[j][3])};
    *reinterpret_cast<uint2*>(&to[0][row][column]) = high;
    if constexpr (kCopies == 2) {
      *reinterpret_cast<uint2*>(&to[1][row][column]) = {
          PackRest(x[j][0], x[j][1], high.x),
          PackRest(x[j][2], x[j][3], high.y)};
    }
  }
}

// Rows [row, row + count) of the head's q, k and v to shared memory.
template <typename T, int kDim, bool kExact, bool kOutput>
__device__ void LoadChunk(const LightningAttentionArgs& args, int64_t row,
                          int count, int head,
                          Tiles<kDim, kExact, kOutput>* shared) {
  constexpr int kParts = kDim / 32;
  constexpr int kWarpRows = kChunk / (kDim / 16);
  constexpr int kPasses = kWarpRows / 4;
  const int64_t width = int64_t{args.num_heads} * kDim;
  const int half = args.rope.half;
  const int first = threadIdx.x / kWarp * kWarpRows +
                    threadIdx.x % kWarp / kHeadLanes * kPasses;
  // Reads a row again for rows behind the last and makes it zero.
  const auto from_row = [&](int i) { return row + (i < count ? i : 0); };
  const auto head_at = [&](int i, int matrix) {
    return static_cast<const T*>(args.qkv) +
           (from_row(i) * 3 + matrix) * width + head * kDim;
  };
  const auto prepare = [&](int i, int matrix, const float* norm, float scale,
                           float(&x)[kParts][4]) {
    if (args.silu) Silu(x);
    if (matrix < 2) {
      NormAndRotatePart(head_at(i, matrix), norm, args.eps,
                        args.rope.cos + from_row(i) * half,
                        args.rope.sin + from_row(i) * half, half, args.silu, x);
    }
    if (i >= count) scale = 0;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[j][e] *= scale;
    }
  };
#pragma unroll
  for (int i = first; i < first + kPasses; ++i) {
    float k[kParts][4], v[kParts][4];
    LoadHeadPart(head_at(i, 1), k);
    LoadHeadPart(head_at(i, 2), v);
    prepare(i, 1, args.k_norm, 1.0f, k);
    StorePart<kDim, 2>(k, shared->k, i);
    prepare(i, 2, nullptr, 1.0f, v);
    StorePart<kDim, 2>(v, shared->v, i);
  }
  if constexpr (kOutput) {
#pragma unroll
    for (int i = first; i < first + kPasses; ++i) {
      float q[kParts][4];
      LoadHeadPart(head_at(i, 0), q);
      prepare(i, 0, args.q_norm, 1.0f / sqrtf(static_cast<float>(kDim)), q);
      StorePart<kDim, kExact ? 2 : 1>(q, shared->q, i);
    }
  }
}

// Asks for the rows of the next chunk while this one is worked on.
template <typename T, int kDim, bool kOutput>
__device__ void PrefetchChunk(const LightningAttentionArgs& args, int64_t row,
                              int count, int head) {
  constexpr int kMatrices = kOutput ? 3 : 2;
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  constexpr int kLines = kDim / kLine;  // of a row's head
  const int64_t width = int64_t{args.num_heads} * kDim;
  for (int i = threadIdx.x; i < count * kMatrices * kLines; i += blockDim.x) {
    const int64_t from_row = row + i / (kMatrices * kLines);
    const int matrix = i / kLines % kMatrices + (kOutput ? 0 : 1);
    PrefetchLine(static_cast<const T*>(args.qkv) +
                 (from_row * 3 + matrix) * width + head * kDim +
                 i % kLines * kLine);
  }
}

// Where the lane's row of a left factor [16, 16] begins; for LoadMatrices.
template <typename Rows>
__device__ uint32_t LeftAddress(const Rows& rows, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  return SharedAddress(&rows[row + lane % 16][column + lane / 16 * 8]);
}
// Likewise for two right factors [16, 8] whose rows are the stored columns:
// b0, b1 of the first in m[0], m[1], of the second in m[2], m[3].
template <typename Rows>
__device__ uint32_t RightAddress(const Rows& rows, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  return SharedAddress(
      &rows[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
}
// Likewise for LoadMatricesTransposed: m is the left factor [columns, rows],
// and (m[0], m[2]), (m[1], m[3]) are two right factors [rows, columns].
template <typename Rows>
__device__ uint32_t TransposedAddress(const Rows& rows, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  return SharedAddress(
      &rows[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
}

// scores = A of the chunk, as far as it is not zero by tiles of 16.
template <int kDim, bool kExact>
__device__ void ScoreChunk(OutputTiles<kDim, kExact>* shared) {
  constexpr int kSplit = kDim / 16 / 4;  // warps that share 16 rows
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int row_tile = warp % 4;
  for (int tile = warp / 4; tile <= row_tile; tile += kSplit) {
    float sums[2][4] = {};
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t q[4], k[4];
      LoadMatrices(LeftAddress(shared->q[0], row_tile * 16, d), q);
      LoadMatrices(RightAddress(shared->k[0], tile * 16, d), k);
      MultiplyAdd(q, k[0], k[1], sums[0]);
      MultiplyAdd(q, k[2], k[3], sums[1]);
      if constexpr (kExact) {
        uint32_t rest[4];
        LoadMatrices(RightAddress(shared->k[1], tile * 16, d), rest);
        MultiplyAdd(q, rest[0], rest[1], sums[0]);
        MultiplyAdd(q, rest[2], rest[3], sums[1]);
        LoadMatrices(LeftAddress(shared->q[1], row_tile * 16, d), q);
        MultiplyAdd(q, k[0], k[1], sums[0]);
        MultiplyAdd(q, k[2], k[3], sums[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = row_tile * 16 + lane / 4 + r * 8;
        const int j = tile * 16 + n * 8 + lane % 4 * 2;
        const float first =
            j <= i ? sums[n][2 * r] * shared->power[i - j] : 0.0f;
        const float second =
            j < i ? sums[n][2 * r + 1] * shared->power[i - j - 1] : 0.0f;
        const uint32_t high = PackBf16(first, second);
        *reinterpret_cast<uint32_t*>(&shared->scores[0][i][j]) = high;
        if constexpr (kExact) {
          *reinterpret_cast<uint32_t*>(&shared->scores[1][i][j]) =
              PackRest(first, second, high);
        }
      }
    }
  }
}

// The warp's 16 columns of o of the chunk, to the workspace from `out` on.
template <int kDim, bool kExact>
__device__ void OutputChunk(const OutputTiles<kDim, kExact>& shared,
                            const float (&state)[kDim / 8][4], int count,
                            int64_t width, float* out) {
  constexpr int kRowTiles = 2;  // at a time, to spare registers
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16;
#pragma unroll
  for (int first = 0; first < kChunk / 16; first += kRowTiles) {
    float o[kRowTiles][2][4] = {};
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      // Columns of v 0 to 7 of the warp's in n = 0, 8 to 15 in n = 1.
      uint32_t high[2][2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const float(&s)[4] = state[2 * d + b];
          high[n][b] = PackBf16(s[2 * n], s[2 * n + 1]);
        }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        uint32_t q[4];
        LoadMatrices(LeftAddress(shared.q[0], (first + m) * 16, d * 16), q);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          MultiplyAdd(q, high[n][0], high[n][1], o[m][n]);
        }
        if constexpr (kExact) {
          uint32_t rest[4];
          LoadMatrices(LeftAddress(shared.q[1], (first + m) * 16, d * 16),
                       rest);
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            MultiplyAdd(rest, high[n][0], high[n][1], o[m][n]);
            const float(&s)[4] = state[2 * d];
            const float(&t)[4] = state[2 * d + 1];
            MultiplyAdd(q, PackRest(s[2 * n], s[2 * n + 1], high[n][0]),
                        PackRest(t[2 * n], t[2 * n + 1], high[n][1]), o[m][n]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = (first + m) * 16 + lane / 4;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          o[m][n][e] *= shared.power[row + e / 2 * 8 + 1];
        }
      }
#pragma unroll
      for (int t = 0; t <= first + m; ++t) {
        uint32_t v[4], a[4];
        LoadMatricesTransposed(TransposedAddress(shared.v[0], t * 16, column),
                               v);
        LoadMatrices(LeftAddress(shared.scores[0], (first + m) * 16, t * 16),
                     a);
        MultiplyAdd(a, v[0], v[2], o[m][0]);
        MultiplyAdd(a, v[1], v[3], o[m][1]);
        if constexpr (kExact) {
          uint32_t rest[4];
          LoadMatrices(LeftAddress(shared.scores[1], (first + m) * 16, t * 16),
                       rest);
          MultiplyAdd(rest, v[0], v[2], o[m][0]);
          MultiplyAdd(rest, v[1], v[3], o[m][1]);
          LoadMatricesTransposed(TransposedAddress(shared.v[1], t * 16, column),
                                 v);
          MultiplyAdd(a, v[0], v[2], o[m][0]);
          MultiplyAdd(a, v[1], v[3], o[m][1]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (row + r * 8 >= count) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          *reinterpret_cast<float2*>(out + (row + r * 8) * width + column +
                                     n * 8 + lane % 4 * 2) =
              float2{o[m][n][2 * r], o[m][n][2 * r + 1]};
        }
      }
    }
  }
}

// Takes the chunk into the warp's rows of the transposed state.
template <int kDim>
__device__ void UpdateState(const StateTiles<kDim>& shared, int count,
                            float (&state)[kDim / 8][4]) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16;
  const float decay = shared.power[count];
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) state[n][e] *= decay;
  }
#pragma unroll 1
  for (int t = 0; t < kChunk; t += 16) {
    uint32_t high[4], rest[4];
    LoadMatricesTransposed(TransposedAddress(shared.v[0], t, column), high);
    LoadMatricesTransposed(TransposedAddress(shared.v[1], t, column), rest);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Rows behind the last are zeros, whatever their factor.
      const int back = count - 1 - (t + lane % 4 * 2 + i / 2 * 8);
      const float first =
          (FirstOf(high[i]) + FirstOf(rest[i])) * shared.power[max(back, 0)];
      const float second = (SecondOf(high[i]) + SecondOf(rest[i])) *
                           shared.power[max(back - 1, 0)];
      high[i] = PackBf16(first, second);
      rest[i] = PackRest(first, second, high[i]);
    }
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t k[4];
      LoadMatricesTransposed(TransposedAddress(shared.k[0], t, d * 16), k);
      MultiplyAdd(high, k[0], k[2], state[2 * d]);
      MultiplyAdd(high, k[1], k[3], state[2 * d + 1]);
      MultiplyAdd(rest, k[0], k[2], state[2 * d]);
      MultiplyAdd(rest, k[1], k[3], state[2 * d + 1]);
      LoadMatricesTransposed(TransposedAddress(shared.k[1], t, d * 16), k);
      MultiplyAdd(high, k[0], k[2], state[2 * d]);
      MultiplyAdd(high, k[1], k[3], state[2 * d + 1]);
    }
  }
}

// The lane's elements of the warp's part of a state [D_k, D_v] in memory:
// body(offset, &element).
template <int kDim, typename Body>
__device__ void ForEachElement(float (&state)[kDim / 8][4], Body body) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      body((n * 8 + lane % 4 * 2 + e % 2) * kDim + column + e / 2 * 8,
           &state[n][e]);
    }
  }
}

template <typename T, int kDim, bool kExact, bool kOutput>
__global__ void __launch_bounds__(kDim * 2, kExact ? 1 : 2)
    WalkChunks(LightningAttentionArgs args, int block_rows) {
  extern __shared__ __align__(16) char memory[];
  auto* const shared = reinterpret_cast<Tiles<kDim, kExact, kOutput>*>(memory);
  const int head = blockIdx.x;
  const StepSegments& segments = args.segments;
  const PromptTile tile = FindPromptTile(segments, block_rows, blockIdx.y);
  if (tile.segment < 0) return;
  const bool last = tile.number == tile.count - 1;
  if (!kOutput && last) return;
  const int64_t row =
      segments.row_begin[tile.segment] + int64_t{tile.number} * block_rows;
  const int rows = min(
      block_rows, segments.row_count[tile.segment] - tile.number * block_rows);
  const int64_t width = int64_t{args.num_heads} * kDim;
  const auto slot_state = [&](int64_t slot) {
    return args.states + (slot * args.num_heads + head) * kDim * kDim;
  };
  float* const block_state =
      BlockState(args, block_rows, row, tile.number == 0, head);

  for (int n = threadIdx.x; n <= kChunk; n += blockDim.x) {
    shared->power[n] = expf(-args.decay_rates[head] * n);
  }
  float state[kDim / 8][4] = {};
  if constexpr (kOutput) {
    const int64_t slot_in = segments.state_in[tile.segment];
    const float* const in = tile.count > 1 ? block_state
                            : slot_in >= 0 ? slot_state(slot_in)
                                           : nullptr;
    if (in != nullptr) {
      ForEachElement<kDim>(state, [&](int i, float* s) { *s = in[i]; });
    }
  }
  for (int begin = 0; begin < rows; begin += kChunk) {
    const int count = min(kChunk, rows - begin);
    LoadChunk<T, kDim, kExact, kOutput>(args, row + begin, count, head, shared);
    __syncthreads();
    PrefetchChunk<T, kDim, kOutput>(args, row + begin + kChunk,
                                    min(kChunk, rows - begin - kChunk), head);
    if constexpr (kOutput) {
      ScoreChunk<kDim, kExact>(shared);
      __syncthreads();
      OutputChunk<kDim, kExact>(
          *shared, state, count, width,
          args.workspace + (row + begin) * width + head * kDim);
    }
    UpdateState<kDim>(*shared, count, state);
    __syncthreads();
  }
  if (kOutput && !last) return;
  float* const out =
      kOutput ? slot_state(segments.state_out[tile.segment]) : block_state;
  ForEachElement<kDim>(state, [&](int i, float* s) { out[i] = *s; });
}

// Block b of a segment of n blocks holds what it adds alone (none for the
// last); in its place comes the state at which it starts.
__global__ void __launch_bounds__(kScanThreads)
    StartStates(LightningAttentionArgs args, int block_rows) {
  const StepSegments& segments = args.segments;
  const int segment = segments.num_decode_segments + blockIdx.z;
  const int count = (segments.row_count[segment] + block_rows - 1) / block_rows;
  if (count < 2) return;
  const int head = blockIdx.y;
  const int64_t size = int64_t{args.head_dim} * args.head_dim;
  const int64_t element =
      (int64_t{blockIdx.x} * kScanThreads + threadIdx.x) * 4;
  const auto at = [&](int b) {
    return reinterpret_cast<float4*>(
        BlockState(args, block_rows,
                   segments.row_begin[segment] + int64_t{b} * block_rows,
                   b == 0, head) +
        element);
  };
  float4 state = {};
  const int64_t slot = segments.state_in[segment];
  if (slot >= 0) {
    state = *reinterpret_cast<const float4*>(
        args.states + (slot * args.num_heads + head) * size + element);
  }
  const float decay = expf(-args.decay_rates[head] * block_rows);
  float4 added = *at(0);
  for (int b = 0; b < count - 1; ++b) {
    const float4 next = b + 2 < count ? *at(b + 1) : float4{};
    *at(b) = state;
    state.x = decay * state.x + added.x;
    state.y = decay * state.y + added.y;
    state.z = decay * state.z + added.z;
    state.w = decay * state.w + added.w;
    added = next;
  }
  *at(count - 1) = state;
}

template <typename T, int kDim, bool kExact, bool kOutput>
void LaunchWalk(const LightningAttentionArgs& args, int block_rows,
                Stream* stream) {
  constexpr int kBytes = sizeof(Tiles<kDim, kExact, kOutput>);
  const auto kernel = WalkChunks<T, kDim, kExact, kOutput>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(
      static_cast<unsigned>(args.num_heads),
      Blocks(MaxPromptTiles(args.segments, args.rows, block_rows), 1));
  kernel<<<grid, kDim * 2, kBytes, stream->get()>>>(args, block_rows);
  CheckLaunch("WalkChunks");
}

void LaunchStart(const LightningAttentionArgs& args, int block_rows,
                 Stream* stream) {
  const int64_t elements = int64_t{args.head_dim} * args.head_dim;
  const dim3 grid(Blocks(elements, 4 * kScanThreads),
                  static_cast<unsigned>(args.num_heads),
                  static_cast<unsigned>(args.segments.num_segments -
                                        args.segments.num_decode_segments));
  StartStates<<<grid, kScanThreads, 0, stream->get()>>>(args, block_rows);
  CheckLaunch("StartStates");
}

template <typename T, int kDim, bool kExact>
void Launch(const LightningAttentionArgs& args, Stream* stream) {
  const int block_rows = LightningBlockRows(args.num_heads);
  if (args.rows > block_rows) {
    LaunchWalk<T, kDim, false, false>(args, block_rows, stream);
    LaunchStart(args, block_rows, stream);
  }
  LaunchWalk<T, kDim, kExact, true>(args, block_rows, stream);
}

}  // namespace

void LightningPromptSegments(const LightningAttentionArgs& args,
                             Stream* stream) {
  const bool exact = args.out_dtype == DType::kFloat32;
  WithFloatType(args.qkv_dtype, [&](auto type) {
    using T = decltype(type);
    if (args.head_dim == 64) {
      if (exact) {
        Launch<T, 64, true>(args, stream);
      } else {
        Launch<T, 64, false>(args, stream);
      }
    } else if (exact) {
      Launch<T, 128, true>(args, stream);
    } else {
      Launch<T, 128, false>(args, stream);
    }
  });
}

}  // namespace ring::cuda
