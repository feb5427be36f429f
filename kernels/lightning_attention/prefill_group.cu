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
#include "kernels/lightning_attention/prompt_chunk.cuh"

namespace ring::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kHalf = kThreads / 2;  // products; preparation
constexpr int kBuffers = 2;
constexpr int kMostBlocks = 8;  // of a cluster, on any GPU
constexpr int kSlabBytes = kChunkRows * kSlabRowBytes;

// Barriers of the block.
constexpr int kFull = 1;                 // + buffer: a chunk is prepared
constexpr int kEmpty = kFull + 2;        // + buffer: it is done with
constexpr int kMultiplied = kEmpty + 2;  // within warpgroups 0 and 1

struct Shared {
  PromptChunk chunks[kBuffers];
  BFloat16 scores[kChunkRows * kChunkRows];  // A, in a slab
  float power[kChunkRows + 1];               // exp(-s n)
  float squares[2][kChunkRows];              // of rows, chunks in turn
};

// Place of an output: columns are swapped so that neither a warp's fragments
// nor rows meet in the banks.
__device__ int OutputIndex(int row, int column) {
  return row * kHeadDim + (column ^ row / 2 % 4 * 8);
}

// Products -----------------------------------------------------------------

// scores = q k^T for the warpgroup's 32 columns, under way.
__device__ void StartScores(const PromptChunk& chunk, int warpgroup,
                            float (&scores)[16]) {
  const uint32_t q = SharedAddress(chunk.q);
  const uint32_t k =
      SharedAddress(chunk.k) + warpgroup * (kChunkRows / 2) * kSlabRowBytes;
#pragma unroll
  for (int d = 0; d < kHeadDim / 16; ++d) {
    const int at = d / 4 * kSlabBytes + d % 4 * 32;
    MultiplyGroup<false, false>(DescribeSlab(q + at), DescribeSlab(k + at),
                                d > 0, scores);
  }
  CommitGroup();
}

// S^T, columns 64 slab to 64 slab + 63 of the warpgroup's, rounded, as left
// factors of 16 columns each.
__device__ void PackState(const float (&state)[kHeadDim / 2], int slab,
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
__device__ void StartFromState(const PromptChunk& chunk, int slab,
                               const uint32_t (&packed)[4][4],
                               float (&o)[kChunkRows / 2]) {
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
      *reinterpret_cast<uint32_t*>(&to[SlabIndex(kChunkRows, i, j)]) =
          PackBf16(first, second);
    }
  }
}

// o += v^T A^T, under way.
__device__ void StartOutputs(const PromptChunk& chunk, const BFloat16* scores,
                             int warpgroup, float (&o)[kChunkRows / 2]) {
  const uint32_t v = SharedAddress(chunk.v[0]) + warpgroup * kSlabBytes;
  const uint32_t a = SharedAddress(scores);
  FenceGroup();
#pragma unroll
  for (int t = 0; t < kChunkRows / 16; ++t) {
    MultiplyGroup<true, false>(DescribeSlab(v + t * 2 * kSlabAlignment),
                               DescribeSlab(a + t * 32), true, o);
  }
  CommitGroup();
}

// S^T += v^T k', under way.
__device__ void StartState(const PromptChunk& chunk, int warpgroup,
                           float (&state)[kHeadDim / 2]) {
  FenceGroup();
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const uint32_t v =
        SharedAddress(chunk.v[part == 1 ? 1 : 0]) + warpgroup * kSlabBytes;
    const uint32_t k = SharedAddress(chunk.decayed_k[part == 2 ? 1 : 0]);
#pragma unroll
    for (int t = 0; t < kChunkRows / 16; ++t) {
      const int at = t * 2 * kSlabAlignment;
      MultiplyGroup<true, true>(DescribeSlab(v + at),
                                DescribeSlab(k + at, kSlabBytes), true, state);
    }
  }
  CommitGroup();
}

// Results ------------------------------------------------------------------

// The warpgroup's part of o to shared memory.
__device__ void StoreOutputs(const float (&o)[kChunkRows / 2], float* to) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kChunkRows / 8; ++n) {
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
__device__ void LoadOutputs(const float* o, int row,
                            float (&x)[kHeadParts][4]) {
#pragma unroll
  for (int j = 0; j < kHeadParts; ++j) {
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
    float x[kHeadParts][4];
    LoadOutputs(o, ResultRow(pass), x);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kHeadParts; ++j) {
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
  const int64_t width = int64_t{args.num_heads} * kHeadDim;
  const float* const weight = args.g_norm + head * kHeadDim;
  const int part = threadIdx.x % kHeadLanes;
  float gate[2][kHeadParts][4];
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    const int i = min(ResultRow(pass), count - 1);
    LoadHeadPart(
        static_cast<const T*>(args.gate) + (row + i) * width + head * kHeadDim,
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
    if (args.groups > 0) scale = InverseRms(sum, blocks * kHeadDim, args.eps);
    if (i >= count) continue;
    if (args.groups == 0 && head == 0 && part == 0) {
      args.sum_of_squares[row + i] = sum;
    }
    BFloat16* const out =
        static_cast<BFloat16*>(args.out) + (row + i) * width + head * kHeadDim;
    float x[kHeadParts][4];
    LoadOutputs(o, i, x);
#pragma unroll
    for (int j = 0; j < kHeadParts; ++j) {
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
    float x[kHeadParts][4];
    LoadOutputs(o, i, x);
#pragma unroll
    for (int j = 0; j < kHeadParts; ++j) {
      StoreFour(x[j],
                args.workspace +
                    ((row + i) * args.num_heads + head) * int64_t{kHeadDim} +
                    HeadColumn(j));
    }
  }
}

// The lane's elements of the warpgroup's part of a state [D_k, D_v] in memory:
// body(offset, &element).
template <typename Body>
__device__ void ForEachElement(float (&state)[kHeadDim / 2], Body body) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kHeadDim / 2; ++i) {
    body((i / 4 * 8 + lane % 4 * 2 + i % 2) * kHeadDim + column + i / 2 % 2 * 8,
         &state[i]);
  }
}

// Walking -------------------------------------------------------------------

// The rows of one block.
struct Block {
  int head;
  PromptTile tile;
  int64_t first_row;
  int rows;

  __device__ bool last() const { return tile.number == tile.count - 1; }
  __device__ int chunks() const { return (rows + kChunkRows - 1) / kChunkRows; }
  __device__ int64_t row(int chunk) const {
    return first_row + chunk * kChunkRows;
  }
  // Rows of a chunk; none or less behind the last.
  __device__ int count(int chunk) const {
    return min(kChunkRows, rows - chunk * kChunkRows);
  }
};

// Warpgroups 2 and 3. They meet the blocks of the cluster once a chunk, as
// warpgroups 0 and 1 do.
template <typename T, WalkGoal kGoal>
__device__ void PrepareChunks(const LightningAttentionArgs& args,
                              const Block& block, Shared* shared) {
  for (int c = 0; c < block.chunks(); ++c) {
    if (c >= kBuffers) WaitAtBarrier(kEmpty + c % kBuffers, kThreads);
    PrefetchRows<T, kGoal>(args, block.row(c + 1), block.count(c + 1),
                           block.head);
    PrepareChunk<T, kGoal>(args, block.row(c), block.count(c), block.head,
                           shared->power, &shared->chunks[c % kBuffers]);
    FenceShared();
    ArriveAtBarrier(kFull + c % kBuffers, kThreads);
    if (kGoal == WalkGoal::kFinished && c > 0) {
      ArriveAtCluster();
      WaitForCluster();
    }
  }
  if constexpr (kGoal == WalkGoal::kFinished) {
    ArriveAtCluster();
    WaitForCluster();
  }
}

// The outputs of a chunk, to where the goal wants them, and its part in the
// state, decayed. `chunk` is prepared.
template <typename T, WalkGoal kGoal>
__device__ void MultiplyChunk(const LightningAttentionArgs& args,
                              const Block& block, int c, int warpgroup,
                              Shared* shared, float (&state)[kHeadDim / 2]) {
  PromptChunk* const chunk = &shared->chunks[c % kBuffers];
  const float* const power = shared->power;
  const float decay = power[block.count(c)];
  // The state in halves: there are no registers for all of it rounded.
  uint32_t packed[4][4];
  float scores[16];
  float o[kChunkRows / 2];
  PackState(state, 0, packed);
  FenceGroup();
  StartScores(*chunk, warpgroup, scores);
  StartFromState(*chunk, 0, packed, o);
  WaitForGroups<1>(scores);
  StoreScores(scores, warpgroup, power, shared->scores);
  WaitForGroups<0>(o);
  PackState(state, 1, packed);
  FenceGroup();
  StartFromState(*chunk, 1, packed, o);
  WaitForGroups<0>(o);
#pragma unroll
  for (int i = 0; i < kChunkRows / 2; ++i) {
    o[i] *= power[i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 + 1];
  }
#pragma unroll
  for (int i = 0; i < kHeadDim / 2; ++i) state[i] *= decay;
  FenceShared();
  WaitAtBarrier(kMultiplied, kHalf);

  StartOutputs(*chunk, shared->scores, warpgroup, o);
  StartState(*chunk, warpgroup, state);
  WaitForGroups<1>(o);
  StoreOutputs(o, chunk->o);
  WaitAtBarrier(kMultiplied, kHalf);
  if constexpr (kGoal == WalkGoal::kRaw) {
    StoreRaw(args, block.row(c), block.count(c), block.head, chunk->o);
    WaitForGroups<0>(state);
  } else {
    float* const squares = shared->squares[c % 2];
    SumSquares(chunk->o, squares);
    __syncwarp();
    ArriveAtCluster();
    WaitForGroups<0>(state);
    FinishRows<T>(args, block.row(c), block.count(c), block.head, chunk->o,
                  squares);
  }
}

// Warpgroups 0 and 1.
template <typename T, WalkGoal kGoal>
__device__ void MultiplyChunks(const LightningAttentionArgs& args,
                               const Block& block, int block_rows,
                               Shared* shared) {
  const int warpgroup = threadIdx.x / (4 * kWarp);
  const auto slot_state = [&](int64_t slot) {
    return args.states +
           (slot * args.num_heads + block.head) * kHeadDim * kHeadDim;
  };
  const StepSegments& segments = args.segments;
  const int segment = block.tile.segment;
  float* const block_state = BlockState(args, block_rows, block.first_row,
                                        block.tile.number == 0, block.head);
  const float* in = nullptr;
  if constexpr (kGoal != WalkGoal::kState) {
    const int64_t slot = segments.state_in[segment];
    in = block.tile.count > 1 ? block_state
         : slot >= 0          ? slot_state(slot)
                              : nullptr;
  }
  float state[kHeadDim / 2];
  ForEachElement(state,
                 [&](int i, float* s) { *s = in == nullptr ? 0.0f : in[i]; });
  for (int c = 0; c < block.chunks(); ++c) {
    WaitAtBarrier(kFull + c % kBuffers, kThreads);
    if constexpr (kGoal == WalkGoal::kState) {
      const float decay = shared->power[block.count(c)];
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) state[i] *= decay;
      StartState(shared->chunks[c % kBuffers], warpgroup, state);
      WaitForGroups<0>(state);
    } else {
      MultiplyChunk<T, kGoal>(args, block, c, warpgroup, shared, state);
    }
    if (c + kBuffers < block.chunks()) {
      ArriveAtBarrier(kEmpty + c % kBuffers, kThreads);
    }
  }
  if (kGoal != WalkGoal::kState && !block.last()) return;
  float* const out = kGoal == WalkGoal::kState
                         ? block_state
                         : slot_state(segments.state_out[segment]);
  ForEachElement(state, [&](int i, float* s) { out[i] = *s; });
}

template <typename T, WalkGoal kGoal>
__global__ void __launch_bounds__(kThreads, 1)
    WalkGroups(LightningAttentionArgs args, int block_rows) {
  extern __shared__ char memory[];
  auto* const shared = reinterpret_cast<Shared*>(
      memory + (kSlabAlignment - SharedAddress(memory) % kSlabAlignment) %
                   kSlabAlignment);
  const StepSegments& segments = args.segments;
  Block block;
  block.head = blockIdx.x;
  block.tile = FindPromptTile(segments, block_rows, blockIdx.y);
  if (block.tile.segment < 0) return;
  if (kGoal == WalkGoal::kState && block.last()) return;
  const int begin = block.tile.number * block_rows;
  block.first_row = segments.row_begin[block.tile.segment] + int64_t{begin};
  block.rows = min(block_rows, segments.row_count[block.tile.segment] - begin);
  for (int n = threadIdx.x; n <= kChunkRows; n += kThreads) {
    shared->power[n] = expf(-args.decay_rates[block.head] * n);
  }
  __syncthreads();

  // Registers go from those who prepare to those who multiply.
  if (threadIdx.x >= kHalf) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 96;");
    PrepareChunks<T, kGoal>(args, block, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
    MultiplyChunks<T, kGoal>(args, block, block_rows, shared);
  }
  // The other blocks may still read this one's sums.
  if constexpr (kGoal == WalkGoal::kFinished) {
    ArriveAtCluster();
    WaitForCluster();
  }
}

template <typename T, WalkGoal kGoal>
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
      Launch<T, WalkGoal::kState>(args, block_rows, 1, stream);
      StartBlockStates(args, block_rows, stream);
    }
    if (finish) {
      Launch<T, WalkGoal::kFinished>(args, block_rows, cluster, stream);
    } else {
      Launch<T, WalkGoal::kRaw>(args, block_rows, 1, stream);
    }
  });
  return finish;
}

}  // namespace ring::cuda
