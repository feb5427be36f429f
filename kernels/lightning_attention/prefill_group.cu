// Prompt segments with heads of 128 and a bf16 result: the chunks of prefill.cu
// as products of warpgroups, transposed:
//   o^T = S^T q^T exp(-s (i + 1)) + v^T A^T      [D_v, C]
//   S^T = exp(-s C) S^T + v^T k'                 [D_v, D_k], k'_j = exp(-s (C -
//                                                 1 - j)) k_j
// WalkGroups: a block owns one head and one block of rows. Warpgroups 0 and 1
// have 64 rows of S^T and o^T each as sums in registers; S^T, rounded, is the
// left factor of S^T q^T where it is. The 8 warps of warpgroups 2 and 3 norm,
// rotate, decay and round the next chunk meanwhile. Products that enter the
// state take k' and v as pairs of bf16 (high and rest, 3 products), the others
// bf16. Outputs pass through shared memory to be written row by row. With
// kFinished the heads of a norm group are a cluster, whose blocks exchange
// their rows' sums of squares. Shared memory: two chunks of 6 matrices [64,
// 128] and one of scores, 201 KiB. Bound: memory; k and v are read twice if the
// segment is cut.
#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"
#include "kernels/warpgroup.cuh"

namespace ring::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kDim = 128;
constexpr int kChunk = 64;
constexpr int kThreads = 512;
constexpr int kHalf = kThreads / 2;  // products; preparation
constexpr int kBuffers = 2;
constexpr int kMostBlocks = 8;  // of a cluster, on any GPU
constexpr int kSlabBytes = kChunk * kSlabRowBytes;
constexpr int kParts = kDim / 32;  // of a head held by 8 lanes

// Barriers of the block.
constexpr int kFull = 1;                 // + buffer: a chunk is prepared
constexpr int kEmpty = kFull + 2;        // + buffer: it is done with
constexpr int kMultiplied = kEmpty + 2;  // within warpgroups 0 and 1

// What WalkGroups is for: what a block adds to a state of zero; its outputs, to
// the workspace; its outputs after group norm and gate.
enum class Goal { kState, kRaw, kFinished };

using Matrix = BFloat16[kChunk * kDim];

// A chunk, in slabs; zeros behind the segment's last row.
struct Chunk {
  union {
    struct {
      Matrix q;
      Matrix k;
    };
    float o[kChunk * kDim];  // once the scores and S^T q^T are there
  };
  Matrix decayed_k[2];  // high and rest
  Matrix v[2];          // likewise
};

struct Shared {
  Chunk chunks[kBuffers];
  BFloat16 scores[kChunk * kChunk];  // A, in a slab
  float power[kChunk + 1];           // exp(-s n)
  float squares[2][kChunk];          // of rows, chunks in turn
};

// Place of an output: columns are swapped so that neither a warp's fragments
// nor rows meet in the banks.
__device__ int OutputIndex(int row, int column) {
  return row * kDim + (column ^ row / 2 % 4 * 8);
}

// Preparation --------------------------------------------------------------

__device__ void StoreHigh(const float (&x)[kParts][4], int row, Matrix* high) {
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    StoreFour(x[j], &(*high)[SlabIndex(kChunk, row, HeadColumn(j))]);
  }
}

__device__ void StoreBoth(const float (&x)[kParts][4], int row,
                          Matrix (*both)[2]) {
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    const int at = SlabIndex(kChunk, row, HeadColumn(j));
    const uint2 high = {PackBf16(x[j][0], x[j][1]), PackBf16(x[j][2], x[j][3])};
    *reinterpret_cast<uint2*>(&(*both)[0][at]) = high;
    *reinterpret_cast<uint2*>(&(*both)[1][at]) = {
        PackRest(x[j][0], x[j][1], high.x), PackRest(x[j][2], x[j][3], high.y)};
  }
}

__device__ void Scale(float factor, float (&x)[kParts][4]) {
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[j][e] *= factor;
  }
}

// Rows [row, row + count) of the head's q, k and v. Called by 8 warps.
template <typename T, Goal kGoal>
__device__ void PrepareChunk(const LightningAttentionArgs& args, int64_t row,
                             int count, int head, const float* power,
                             Chunk* chunk) {
  const int64_t width = int64_t{args.num_heads} * kDim;
  const int half = args.rope.half;
  const int warp = threadIdx.x % kHalf / kWarp;
  const int group = threadIdx.x % kWarp / kHeadLanes;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    // Rows of a half-warp are 4 apart: they meet no bank twice.
    const int i = warp * 8 + group % 2 * 4 + group / 2 * 2 + pass;
    const bool real = i < count;
    const int64_t from_row = row + (real ? i : 0);
    const T* const from =
        static_cast<const T*>(args.qkv) + from_row * 3 * width + head * kDim;
    const float* const cos = args.rope.cos + from_row * half;
    const float* const sin = args.rope.sin + from_row * half;
    const float keep = real ? 1.0f : 0.0f;
    float k[kParts][4], v[kParts][4];
    LoadHeadPart(from + width, k);
    LoadHeadPart(from + 2 * width, v);
    if (args.silu) {
      Silu(k);
      Silu(v);
    }
    NormAndRotatePart(from + width, args.k_norm, args.eps, cos, sin, half,
                      args.silu, k);
    if constexpr (kGoal != Goal::kState) {
      Scale(keep, k);
      StoreHigh(k, i, &chunk->k);
    }
    Scale(keep * power[max(count - 1 - i, 0)], k);
    StoreBoth(k, i, &chunk->decayed_k);
    Scale(keep, v);
    StoreBoth(v, i, &chunk->v);
    if constexpr (kGoal != Goal::kState) {
      float q[kParts][4];
      LoadHeadPart(from, q);
      if (args.silu) Silu(q);
      NormAndRotatePart(from, args.q_norm, args.eps, cos, sin, half, args.silu,
                        q);
      Scale(keep / sqrtf(static_cast<float>(kDim)), q);
      StoreHigh(q, i, &chunk->q);
    }
  }
}

// Asks for `count` rows from `row` on: of q, k, v, and of the gate, which is
// needed at the end of a chunk.
template <typename T, Goal kGoal>
__device__ void PrefetchRows(const LightningAttentionArgs& args, int64_t row,
                             int count, int head) {
  constexpr int kFirst = kGoal == Goal::kState ? 1 : 0;
  constexpr int kMatrices = kGoal == Goal::kFinished ? 4 : 3 - kFirst;
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  constexpr int kLines = kDim / kLine;  // of a row's head
  const int64_t width = int64_t{args.num_heads} * kDim;
  for (int i = threadIdx.x % kHalf; i < count * kMatrices * kLines;
       i += kHalf) {
    const int64_t from_row = row + i / (kMatrices * kLines);
    const int matrix = kFirst + i / kLines % kMatrices;
    const T* const from =
        matrix == 3
            ? static_cast<const T*>(args.gate) + from_row * width
            : static_cast<const T*>(args.qkv) + (from_row * 3 + matrix) * width;
    PrefetchLine(from + head * kDim + i % kLines * kLine);
  }
}

// Products -----------------------------------------------------------------

// scores = q k^T for the warpgroup's 32 columns, under way.
__device__ void StartScores(const Chunk& chunk, int warpgroup,
                            float (&scores)[16]) {
  const uint32_t q = SharedAddress(chunk.q);
  const uint32_t k =
      SharedAddress(chunk.k) + warpgroup * (kChunk / 2) * kSlabRowBytes;
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    const int at = d / 4 * kSlabBytes + d % 4 * 32;
    MultiplyGroup<false, false>(DescribeSlab(q + at), DescribeSlab(k + at),
                                d > 0, scores);
  }
  CommitGroup();
}

// S^T, columns 64 slab to 64 slab + 63 of the warpgroup's, rounded, as left
// factors of 16 columns each.
__device__ void PackState(const float (&state)[kDim / 2], int slab,
                          uint32_t (&packed)[4][4]) {
#pragma unroll
  for (int d = 0; d < 4; ++d) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = slab * 32 + 8 * d + 2 * i;
      packed[d][i] = PackBf16(state[at], state[at + 1]);
    }
  }
}

// o (+)= S^T q^T for these columns, under way.
__device__ void StartFromState(const Chunk& chunk, int slab,
                               const uint32_t (&packed)[4][4],
                               float (&o)[kChunk / 2]) {
  const uint32_t q = SharedAddress(chunk.q) + slab * kSlabBytes;
#pragma unroll
  for (int d = 0; d < 4; ++d) {
    MultiplyGroup<false>(packed[d], DescribeSlab(q + d * 32), slab + d > 0, o);
  }
  CommitGroup();
}

// Scores with decay to shared memory.
__device__ void StoreScores(const float (&scores)[16], int warpgroup,
                            const float* power, BFloat16* to) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp % 4;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = warp * 16 + r * 8 + lane / 4;
      const int j = warpgroup * 32 + n * 8 + lane % 4 * 2;
      const float first = j <= i ? scores[4 * n + 2 * r] * power[i - j] : 0.0f;
      const float second =
          j < i ? scores[4 * n + 2 * r + 1] * power[i - j - 1] : 0.0f;
      *reinterpret_cast<uint32_t*>(&to[SlabIndex(kChunk, i, j)]) =
          PackBf16(first, second);
    }
  }
}

// o += v^T A^T, under way.
__device__ void StartOutputs(const Chunk& chunk, const BFloat16* scores,
                             int warpgroup, float (&o)[kChunk / 2]) {
  const uint32_t v = SharedAddress(chunk.v[0]) + warpgroup * kSlabBytes;
  const uint32_t a = SharedAddress(scores);
  FenceGroup();
#pragma unroll
  for (int t = 0; t < kChunk / 16; ++t) {
    MultiplyGroup<true, false>(DescribeSlab(v + t * 2 * kSlabAlignment),
                               DescribeSlab(a + t * 32), true, o);
  }
  CommitGroup();
}

// S^T += v^T k', under way.
__device__ void StartState(const Chunk& chunk, int warpgroup,
                           float (&state)[kDim / 2]) {
  FenceGroup();
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const uint32_t v =
        SharedAddress(chunk.v[part == 1 ? 1 : 0]) + warpgroup * kSlabBytes;
    const uint32_t k = SharedAddress(chunk.decayed_k[part == 2 ? 1 : 0]);
#pragma unroll
    for (int t = 0; t < kChunk / 16; ++t) {
      const int at = t * 2 * kSlabAlignment;
      MultiplyGroup<true, true>(DescribeSlab(v + at),
                                DescribeSlab(k + at, kSlabBytes), true, state);
    }
  }
  CommitGroup();
}

// Results ------------------------------------------------------------------

// The warpgroup's part of o to shared memory.
__device__ void StoreOutputs(const float (&o)[kChunk / 2], float* to) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      to[OutputIndex(n * 8 + lane % 4 * 2 + e % 2, column + e / 2 * 8)] =
          o[4 * n + e];
    }
  }
}

// The 8 warps of warpgroups 0 and 1 take 8 rows each, 4 at a time.
__device__ int ResultRow(int pass) {
  return threadIdx.x / kWarp * 8 + pass * 4 + threadIdx.x % kWarp / kHeadLanes;
}
__device__ void LoadOutputs(const float* o, int row, float (&x)[kParts][4]) {
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    LoadFour(&o[OutputIndex(row, HeadColumn(j))], x[j]);
  }
}
__device__ float SumOverHeadLanes(float x) {
#pragma unroll
  for (int offset = 1; offset < kHeadLanes; offset *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

__device__ void SumSquares(const float* o, float* squares) {
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    float x[kParts][4];
    LoadOutputs(o, ResultRow(pass), x);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum += x[j][e] * x[j][e];
    }
    sum = SumOverHeadLanes(sum);
    if (threadIdx.x % kHeadLanes == 0) squares[ResultRow(pass)] = sum;
  }
}

__device__ inline void ArriveAtCluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void WaitForCluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Group norm and gate of the chunk's rows, when the blocks of the cluster have
// their sums of squares.
template <typename T>
__device__ void FinishRows(const LightningAttentionArgs& args, int64_t row,
                           int count, int head, const float* o,
                           float* squares) {
  const int64_t width = int64_t{args.num_heads} * kDim;
  const float* const weight = args.g_norm + head * kDim;
  const int part = threadIdx.x % kHeadLanes;
  float gate[2][kParts][4];
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    const int i = min(ResultRow(pass), count - 1);
    LoadHeadPart(
        static_cast<const T*>(args.gate) + (row + i) * width + head * kDim,
        gate[pass]);
  }
  WaitForCluster();
  const auto cluster = cg::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    const int i = ResultRow(pass);
    float sum = 0;
    if (part < blocks) sum = *cluster.map_shared_rank(&squares[i], part);
    sum = SumOverHeadLanes(sum);
    float scale = 1.0f;
    if (args.groups > 0) scale = InverseRms(sum, blocks * kDim, args.eps);
    if (i >= count) continue;
    if (args.groups == 0 && head == 0 && part == 0) {
      args.sum_of_squares[row + i] = sum;
    }
    BFloat16* const out =
        static_cast<BFloat16*>(args.out) + (row + i) * width + head * kDim;
    float x[kParts][4];
    LoadOutputs(o, i, x);
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      float w[4];
      LoadFour(weight + HeadColumn(j), w);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[j][e] *=
            scale * w[e] * __fdividef(1.0f, 1.0f + __expf(-gate[pass][j][e]));
      }
      StoreFour(x[j], out + HeadColumn(j));
    }
  }
}

__device__ void StoreRaw(const LightningAttentionArgs& args, int64_t row,
                         int count, int head, const float* o) {
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    const int i = ResultRow(pass);
    if (i >= count) continue;
    float x[kParts][4];
    LoadOutputs(o, i, x);
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      StoreFour(x[j], args.workspace +
                          ((row + i) * args.num_heads + head) * int64_t{kDim} +
                          HeadColumn(j));
    }
  }
}

// The lane's elements of the warpgroup's part of a state [D_k, D_v] in memory:
// body(offset, &element).
template <typename Body>
__device__ void ForEachElement(float (&state)[kDim / 2], Body body) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    body((i / 4 * 8 + lane % 4 * 2 + i % 2) * kDim + column + i / 2 % 2 * 8,
         &state[i]);
  }
}

template <typename T, Goal kGoal>
__global__ void __launch_bounds__(kThreads, 1)
    WalkGroups(LightningAttentionArgs args, int block_rows) {
  extern __shared__ char memory[];
  auto* const shared = reinterpret_cast<Shared*>(
      memory + (kSlabAlignment - SharedAddress(memory) % kSlabAlignment) %
                   kSlabAlignment);
  const int head = blockIdx.x;
  const StepSegments& segments = args.segments;
  const PromptTile tile = FindPromptTile(segments, block_rows, blockIdx.y);
  if (tile.segment < 0) return;
  const bool last = tile.number == tile.count - 1;
  if (kGoal == Goal::kState && last) return;
  const int64_t first_row =
      segments.row_begin[tile.segment] + int64_t{tile.number} * block_rows;
  const int rows = min(
      block_rows, segments.row_count[tile.segment] - tile.number * block_rows);
  const int chunks = (rows + kChunk - 1) / kChunk;
  for (int n = threadIdx.x; n <= kChunk; n += kThreads) {
    shared->power[n] = expf(-args.decay_rates[head] * n);
  }
  __syncthreads();

  if (threadIdx.x >= kHalf) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 96;");
    for (int c = 0; c < chunks; ++c) {
      const int64_t row = first_row + c * kChunk;
      const int count = min(kChunk, rows - c * kChunk);
      if (c >= kBuffers) WaitAtBarrier(kEmpty + c % kBuffers, kThreads);
      PrefetchRows<T, kGoal>(args, row + kChunk,
                             min(kChunk, rows - (c + 1) * kChunk), head);
      PrepareChunk<T, kGoal>(args, row, count, head, shared->power,
                             &shared->chunks[c % kBuffers]);
      FenceShared();
      ArriveAtBarrier(kFull + c % kBuffers, kThreads);
      if (kGoal == Goal::kFinished && c > 0) {
        ArriveAtCluster();
        WaitForCluster();
      }
    }
    if constexpr (kGoal == Goal::kFinished) {
      ArriveAtCluster();
      WaitForCluster();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
    const int warpgroup = threadIdx.x / (4 * kWarp);
    const auto slot_state = [&](int64_t slot) {
      return args.states + (slot * args.num_heads + head) * kDim * kDim;
    };
    float* const block_state =
        BlockState(args, block_rows, first_row, tile.number == 0, head);
    float state[kDim / 2];
    const float* in = nullptr;
    if constexpr (kGoal != Goal::kState) {
      const int64_t slot_in = segments.state_in[tile.segment];
      in = tile.count > 1 ? block_state
           : slot_in >= 0 ? slot_state(slot_in)
                          : nullptr;
    }
    ForEachElement(state,
                   [&](int i, float* s) { *s = in == nullptr ? 0.0f : in[i]; });
    for (int c = 0; c < chunks; ++c) {
      const int64_t row = first_row + c * kChunk;
      const int count = min(kChunk, rows - c * kChunk);
      Chunk* const chunk = &shared->chunks[c % kBuffers];
      const float decay = shared->power[count];
      if constexpr (kGoal == Goal::kState) {
        WaitAtBarrier(kFull + c % kBuffers, kThreads);
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) state[i] *= decay;
        StartState(*chunk, warpgroup, state);
        WaitForGroups<0>(state);
      } else {
        // The state in halves: there are no registers for all of it rounded.
        uint32_t packed[4][4];
        PackState(state, 0, packed);
        float scores[16];
        float o[kChunk / 2];
        WaitAtBarrier(kFull + c % kBuffers, kThreads);
        FenceGroup();
        StartScores(*chunk, warpgroup, scores);
        StartFromState(*chunk, 0, packed, o);
        WaitForGroups<1>(scores);
        StoreScores(scores, warpgroup, shared->power, shared->scores);
        WaitForGroups<0>(o);
        PackState(state, 1, packed);
        FenceGroup();
        StartFromState(*chunk, 1, packed, o);
        WaitForGroups<0>(o);
#pragma unroll
        for (int i = 0; i < kChunk / 2; ++i) {
          o[i] *= shared->power[i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 + 1];
        }
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) state[i] *= decay;
        FenceShared();
        WaitAtBarrier(kMultiplied, kHalf);
        StartOutputs(*chunk, shared->scores, warpgroup, o);
        StartState(*chunk, warpgroup, state);
        WaitForGroups<1>(o);
        StoreOutputs(o, chunk->o);
        WaitAtBarrier(kMultiplied, kHalf);
        if constexpr (kGoal == Goal::kRaw) {
          StoreRaw(args, row, count, head, chunk->o);
          WaitForGroups<0>(state);
        } else {
          SumSquares(chunk->o, shared->squares[c % 2]);
          __syncwarp();
          ArriveAtCluster();
          WaitForGroups<0>(state);
          FinishRows<T>(args, row, count, head, chunk->o,
                        shared->squares[c % 2]);
        }
      }
      if (c + kBuffers < chunks) {
        ArriveAtBarrier(kEmpty + c % kBuffers, kThreads);
      }
    }
    if (kGoal == Goal::kState || last) {
      float* const out = kGoal == Goal::kState
                             ? block_state
                             : slot_state(segments.state_out[tile.segment]);
      ForEachElement(state, [&](int i, float* s) { out[i] = *s; });
    }
  }
  // The other blocks may still read this one's sums.
  if constexpr (kGoal == Goal::kFinished) {
    ArriveAtCluster();
    WaitForCluster();
  }
}

template <typename T, Goal kGoal>
void Launch(const LightningAttentionArgs& args, int block_rows, int cluster,
            Stream* stream) {
  constexpr int kBytes = sizeof(Shared) + kSlabAlignment;
  const auto kernel = WalkGroups<T, kGoal>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>(args.num_heads),
           Blocks(MaxPromptTiles(args.segments, args.rows, block_rows), 1));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream->get();
  config.attrs = &attribute;
  config.numAttrs = 1;
  RING_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args, block_rows));
}

}  // namespace

bool LightningPromptGroups(const LightningAttentionArgs& args, Stream* stream) {
  const int block_rows = LightningBlockRows(args.num_heads);
  const int groups = std::max(args.groups, 1);
  const int cluster = args.num_heads / groups;
  const bool finish = args.num_heads % groups == 0 && cluster <= kMostBlocks;
  WithFloatType(args.qkv_dtype, [&](auto type) {
    using T = decltype(type);
    if (args.rows > block_rows) {
      Launch<T, Goal::kState>(args, block_rows, 1, stream);
      StartBlockStates(args, block_rows, stream);
    }
    if (finish) {
      Launch<T, Goal::kFinished>(args, block_rows, cluster, stream);
    } else {
      Launch<T, Goal::kRaw>(args, block_rows, 1, stream);
    }
  });
  return finish;
}

}  // namespace ring::cuda
