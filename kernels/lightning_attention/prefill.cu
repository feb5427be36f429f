// Prompt segments, in chunks of 64 rows on tensor cores. With C rows in a
// chunk, local indices i, j and incoming state S:
//   A[i, j] = (q_i . k_j) exp(-s (i - j)) for j <= i, else 0
//   o_i     = sum_j A[i, j] v_j + exp(-s (i + 1)) q_i S
//   S       = exp(-s C) S + sum_j exp(-s (C - 1 - j)) outer(k_j, v_j)
// Every exponent is a difference of row numbers, so nothing overflows whatever
// the rate.
//
// Long segments are cut into blocks of rows that work side by side:
//
//   SumRows: what each block alone adds to a state, decayed to the block's end
//   StartStates: from these, the state at which each block starts, and the last
//   AttendRows: the outputs of each block
//
// A segment of one block takes AttendRows, then SumRows for its state.
//
// SumRows, AttendRows: a block owns one head and one block of rows. 8 warps
// feed (prompt_feed.cuh), D / 16 multiply: a warpgroup has 64 columns of v and
// keeps its part of the transposed state in registers, as sums in fp32 of
// wgmma. Left factors are v and the state in registers, right factors k, q and
// the scores in shared memory, so o comes out transposed too; only the scores
// take q from there. SumRows, whose state lasts, takes k and v as pairs of bf16
// (high and rest, 16 bits of mantissa): 3 products, 2 if v is bf16. AttendRows
// takes single ones, but for the scores of v, and pairs throughout for a result
// in fp32 (kRests). Shared memory for D = 128, 32 angles: SumRows 208 to 212
// KiB, AttendRows 224 to 227 KiB. Bound: the feeding warps' instructions, with
// half of the memory's bandwidth in use; k and v are read twice.
//
// StartStates: a thread owns 4 elements of one head's state in all blocks of a
// segment.
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"
#include "kernels/lightning_attention/prompt_feed.cuh"
#include "kernels/linear/hopper.cuh"

namespace ring::cuda {
namespace {

constexpr int kScanThreads = 256;
constexpr int kScanAhead = 8;
constexpr int kMaxSharedBytes = 227 << 10;
// Of a thread; together 256 for D = 128.
template <typename Feed>
inline constexpr int kFeedRegisters = Feed::kOutput ? 80 : 112;
template <typename Feed>
inline constexpr int kProductRegisters = Feed::kOutput ? 176 : 144;

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

// One block's share of the work.
struct BlockRows : RowRange {
  int segment;
  bool first;  // of its segment
  bool whole;  // the only one of its segment
};

// False if there is no such block.
__device__ bool FindBlock(const LightningAttentionArgs& args, int block_rows,
                          BlockRows* block) {
  const StepSegments& segments = args.segments;
  const PromptTile tile = FindPromptTile(segments, block_rows, blockIdx.y);
  if (tile.segment < 0) return false;
  const int before = tile.number * block_rows;
  block->row = segments.row_begin[tile.segment] + int64_t{before};
  block->count = min(block_rows, segments.row_count[tile.segment] - before);
  block->head = blockIdx.x;
  block->segment = tile.segment;
  block->first = tile.number == 0;
  block->whole = tile.count == 1;
  return true;
}

__device__ float* SlotState(const LightningAttentionArgs& args, int64_t slot,
                            int head) {
  return args.states +
         (slot * args.num_heads + head) * args.head_dim * args.head_dim;
}

// The lane's elements of the warp's part of a state [D_k, D_v] in memory:
// body(offset, &element).
template <int kDim, typename Body>
__device__ void ForEachElement(float (&state)[kDim / 2], Body body) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      body((n * 8 + lane % 4 * 2 + e % 2) * kDim + column + e / 2 * 8,
           &state[n * 4 + e]);
    }
  }
}

// Fragments of the transposed v of a chunk, the warp's 16 columns.
using Fragments = uint32_t[kChunk / 16][4];
__device__ void LoadValues(const BFloat16* v, Fragments& fragments) {
  const int lane = threadIdx.x % kWarp;
  const int column = threadIdx.x / kWarp * 16;
#pragma unroll
  for (int t = 0; t < kChunk / 16; ++t) {
    LoadMatricesTransposed(
        SharedAddress(v + SlabIndex(kChunk, t * 16 + lane / 16 * 8 + lane % 8,
                                    column + lane / 8 % 2 * 8)),
        fragments[t]);
  }
}

// state += v^T k, for the warpgroup's 64 columns of v.
template <int kDim>
__device__ void AddProducts(const Fragments& v, const BFloat16* k,
                            float (&state)[kDim / 2]) {
  constexpr int kSlabBytes = kChunk * kSlabRowBytes;
  const uint32_t address = SharedAddress(k);
#pragma unroll
  for (int t = 0; t < kChunk / 16; ++t) {
    MultiplyGroup<true>(
        v[t], DescribeSlab(address + t * 2 * kSlabAlignment, kSlabBytes), true,
        state);
  }
}

// ---- SumRows.

template <typename Feed, bool kRestOfV>
__device__ void SumChunks(const BFloat16* tiles, int chunks, int stages,
                          float (&state)[Feed::kDim / 2]) {
  constexpr int kDim = Feed::kDim;
  int stage = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const BFloat16* const tile = tiles + stage * (Feed::kStageBytes / 2);
    const BFloat16* const k = tile + Feed::kK * Feed::kTileElements;
    const BFloat16* const v = tile + Feed::kV * Feed::kTileElements;
    SyncAt<Feed::kThreads>(kFull + stage);
    Fragments high, rest;
    LoadValues(v, high);
    if constexpr (kRestOfV) LoadValues(v + Feed::kTileElements, rest);
    FenceGroup();
    AddProducts<kDim>(high, k, state);
    AddProducts<kDim>(high, k + Feed::kTileElements, state);
    if constexpr (kRestOfV) AddProducts<kDim>(rest, k, state);
    CommitGroup();
    WaitForGroups<0>(state);
    if (chunk + stages < chunks) {
      ArriveAtNamed<Feed::kThreads>(kEmpty + stage);
    }
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
}

// For segments of several blocks: to the workspace what the block adds. For
// those of one block (`whole`): the state after it, to its slot.
template <typename Feed>
__global__ void __launch_bounds__(Feed::kThreads, 1)
    SumRows(LightningAttentionArgs args, int block_rows, int stages,
            bool whole) {
  extern __shared__ __align__(1024) char memory[];
  constexpr int kDim = Feed::kDim;
  BlockRows block;
  if (!FindBlock(args, block_rows, &block) || block.whole != whole) return;
  BFloat16* const tiles = reinterpret_cast<BFloat16*>(memory);
  if (threadIdx.x >= Feed::kProductThreads) {
    GiveRegisters<kFeedRegisters<Feed>>();
    FeedWarp<Feed>(args, block, memory + stages * Feed::kStageBytes,
                   (threadIdx.x - Feed::kProductThreads) / kWarp)
        .Run(tiles, stages);
  } else {
    TakeRegisters<kProductRegisters<Feed>>();
    const int chunks = (block.count + kChunk - 1) / kChunk;
    float state[kDim / 2] = {};
    if (Feed::HasRestOfV(args)) {
      SumChunks<Feed, true>(tiles, chunks, stages, state);
    } else {
      SumChunks<Feed, false>(tiles, chunks, stages, state);
    }
    if (!whole) {
      float* const out =
          BlockState(args, block_rows, block.row, block.first, block.head);
      ForEachElement<kDim>(state, [&](int i, float* s) { out[i] = *s; });
      return;
    }
    const int64_t slot_in = args.segments.state_in[block.segment];
    if (slot_in >= 0) {
      const float* const in = SlotState(args, slot_in, block.head);
      const float decay = expf(-args.decay_rates[block.head] * block.count);
      ForEachElement<kDim>(state,
                           [&](int i, float* s) { *s += decay * in[i]; });
    }
    float* const out =
        SlotState(args, args.segments.state_out[block.segment], block.head);
    ForEachElement<kDim>(state, [&](int i, float* s) { out[i] = *s; });
  }
}

// ---- StartStates.

// Block b of a segment of n blocks holds what it adds alone; in its place comes
// the state at which it starts.
__global__ void __launch_bounds__(kScanThreads)
    StartStates(LightningAttentionArgs args, int block_rows) {
  const StepSegments& segments = args.segments;
  const int segment = segments.num_decode_segments + blockIdx.z;
  const int rows = segments.row_count[segment];
  const int count = (rows + block_rows - 1) / block_rows;
  if (count < 2) return;
  const int head = blockIdx.y;
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
    state =
        *reinterpret_cast<const float4*>(SlotState(args, slot, head) + element);
  }
  const float rate = args.decay_rates[head];
  const float decay = expf(-rate * block_rows);
  const float last_decay = expf(-rate * (rows - (count - 1) * block_rows));
  for (int begin = 0; begin < count; begin += kScanAhead) {
    float4 added[kScanAhead];
#pragma unroll
    for (int i = 0; i < kScanAhead; ++i) {
      if (begin + i < count) added[i] = *at(begin + i);
    }
#pragma unroll
    for (int i = 0; i < kScanAhead; ++i) {
      const int b = begin + i;
      if (b >= count) break;
      *at(b) = state;
      const float d = b + 1 < count ? decay : last_decay;
      state.x = d * state.x + added[i].x;
      state.y = d * state.y + added[i].y;
      state.z = d * state.z + added[i].z;
      state.w = d * state.w + added[i].w;
    }
  }
  *reinterpret_cast<float4*>(
      SlotState(args, segments.state_out[segment], head) + element) = state;
}

// ---- AttendRows.

// What the multiplying warps share besides the stages.
struct alignas(16) Shared {
  BFloat16 scores[2][kChunk * kChunk];  // high and rest
  float powers[2 * kChunk + 4];         // see Power
};

// exp(-s n), or 0 for a negative n. REQUIRES: -kChunk <= n <= kChunk.
__device__ const float* Power(const Shared& shared, int n) {
  return &shared.powers[kChunk + n];
}

template <typename Feed>
struct Attend {
  static constexpr int kDim = Feed::kDim;
  static constexpr int kSlabBytes = Feed::kSlabBytes;
  // Columns of the scores that a warpgroup computes, all of them in one slab.
  static constexpr int kScoreColumns = kChunk / (kDim / 64);

  // The step-th 16 columns of a matrix in slabs.
  static __device__ uint64_t Columns(uint32_t address, int step) {
    return DescribeSlab(address + step / 4 * kSlabBytes + step % 4 * 32);
  }

  // sums = q k^T, for the warpgroup's columns.
  static __device__ void MultiplyScores(const BFloat16* q, const BFloat16* k,
                                        bool add,
                                        float (&sums)[kScoreColumns / 2]) {
    const int group = threadIdx.x / (4 * kWarp);
    const uint32_t queries = SharedAddress(q);
    const uint32_t keys =
        SharedAddress(k) + group * kScoreColumns * kSlabRowBytes;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      MultiplyShared(Columns(queries, d), Columns(keys, d), add || d > 0, sums);
    }
  }

  // scores = sums, decayed; zero for columns that are after their row.
  static __device__ void StoreScores(const float (&sums)[kScoreColumns / 2],
                                     Shared* shared) {
    const int lane = threadIdx.x % kWarp;
    const int row = threadIdx.x / kWarp % 4 * 16 + lane / 4;
    const int column = threadIdx.x / (4 * kWarp) * kScoreColumns + lane % 4 * 2;
    const float* const power = Power(*shared, row - column);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < kScoreColumns / 8; ++n) {
        const float* const s = &sums[n * 4 + r * 2];
        const float first = s[0] * power[(r - n) * 8];
        const float second = s[1] * power[(r - n) * 8 - 1];
        const uint32_t high = PackBf16(first, second);
        const int at = SlabIndex(kChunk, row + r * 8, column + n * 8);
        *reinterpret_cast<uint32_t*>(&shared->scores[0][at]) = high;
        *reinterpret_cast<uint32_t*>(&shared->scores[1][at]) =
            PackRest(first, second, high);
      }
    }
  }

  // The state as left factors.
  using StateFragments = uint32_t[kDim / 16][4];
  static __device__ void PackState(const float (&state)[kDim / 2],
                                   StateFragments* high, StateFragments* rest) {
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const s = &state[(2 * d + i / 2) * 4 + i % 2 * 2];
        (*high)[d][i] = PackBf16(s[0], s[1]);
        if constexpr (Feed::kRests) {
          (*rest)[d][i] = PackRest(s[0], s[1], (*high)[d][i]);
        }
      }
    }
  }

  // o = state q^T, for all columns and rows of the warpgroup.
  static __device__ void MultiplyState(const StateFragments& state,
                                       const BFloat16* q, bool add,
                                       float (&o)[32]) {
    const uint32_t queries = SharedAddress(q);
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      MultiplyGroup<false>(state[d], Columns(queries, d), add || d > 0, o);
    }
  }

  // o += v^T scores^T.
  static __device__ void MultiplyValues(const Fragments& v,
                                        const BFloat16* scores,
                                        float (&o)[32]) {
    const uint32_t address = SharedAddress(scores);
#pragma unroll
    for (int t = 0; t < kChunk / 16; ++t) {
      MultiplyGroup<false>(v[t], Columns(address, t), true, o);
    }
  }

  // v decayed to the end of `count` rows; `rest` stays what it is without.
  static __device__ void DecayValues(const Shared& shared, int count,
                                     Fragments* high, Fragments* rest) {
    const int lane = threadIdx.x % kWarp;
    const float* const power = Power(shared, count - 1 - lane % 4 * 2);
#pragma unroll
    for (int t = 0; t < kChunk / 16; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = t * 16 + i / 2 * 8;
        uint32_t& h = (*high)[t][i];
        float first = FirstOf(h);
        float second = SecondOf(h);
        if constexpr (Feed::kRests) {
          first += FirstOf((*rest)[t][i]);
          second += SecondOf((*rest)[t][i]);
        }
        first *= power[-row];
        second *= power[-row - 1];
        h = PackBf16(first, second);
        if constexpr (Feed::kRests) {
          (*rest)[t][i] = PackRest(first, second, h);
        }
      }
    }
  }

  // The warp's 16 columns of o of `count` rows, to the workspace from `out` on.
  static __device__ void StoreOutputs(const float (&o)[32], int count,
                                      int64_t width, float* out) {
    const int lane = threadIdx.x % kWarp;
    float* to =
        out + threadIdx.x / kWarp * 16 + lane / 4 + lane % 4 * 2 * width;
    const auto store = [&](int n, bool first, bool second) {
      if (first) {
        to[0] = o[n * 4];
        to[8] = o[n * 4 + 2];
      }
      if (second) {
        to[width] = o[n * 4 + 1];
        to[width + 8] = o[n * 4 + 3];
      }
      to += 8 * width;
    };
    if (count == kChunk) {
#pragma unroll
      for (int n = 0; n < kChunk / 8; ++n) store(n, true, true);
    } else {
#pragma unroll
      for (int n = 0; n < kChunk / 8; ++n) {
        const int i = n * 8 + lane % 4 * 2;
        store(n, i < count, i + 1 < count);
      }
    }
  }

  // One chunk of `count` rows: its outputs, and the state after it.
  static __device__ void Chunk(const BFloat16* tile, int count, int64_t width,
                               Shared* shared, float (&state)[kDim / 2],
                               float* out) {
    constexpr int kRest = Feed::kTileElements;
    const BFloat16* const q = tile + Feed::kQ * Feed::kTileElements;
    const BFloat16* const k = tile + Feed::kK * Feed::kTileElements;
    const BFloat16* const v = tile + Feed::kV * Feed::kTileElements;
    const int lane = threadIdx.x % kWarp;
    float sums[kScoreColumns / 2];
    float o[32];
    // All that is to be done with the state before products are under way.
    StateFragments before, before_rest;
    PackState(state, &before, &before_rest);
    const float decay = *Power(*shared, count);
#pragma unroll
    for (float& s : state) s *= decay;
    FenceGroup();
    MultiplyScores(q, k, false, sums);
    if constexpr (Feed::kRests) {
      MultiplyScores(q, k + kRest, true, sums);
      MultiplyScores(q + kRest, k, true, sums);
    }
    CommitGroup();
    MultiplyState(before, q, false, o);
    if constexpr (Feed::kRests) {
      MultiplyState(before, q + kRest, true, o);
      MultiplyState(before_rest, q, true, o);
    }
    CommitGroup();
    WaitForGroups<1>(sums);
    // The last chunk's scores are done with.
    SyncAt<Feed::kProductThreads>(kScores);
    StoreScores(sums, shared);
    FenceShared();
    SyncAt<Feed::kProductThreads>(kScores);
    Fragments high, rest;
    LoadValues(v, high);
    if constexpr (Feed::kRests) LoadValues(v + kRest, rest);
    WaitForGroups<0>(o);
    const float* const power = Power(*shared, lane % 4 * 2 + 1);
#pragma unroll
    for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n * 4 + e] *= power[n * 8 + e % 2];
    }
    FenceGroup();
    MultiplyValues(high, shared->scores[0], o);
    MultiplyValues(high, shared->scores[1], o);
    if constexpr (Feed::kRests) MultiplyValues(rest, shared->scores[0], o);
    CommitGroup();
    Fragments decayed, decayed_rest;
#pragma unroll
    for (int t = 0; t < kChunk / 16; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        decayed[t][i] = high[t][i];
        if constexpr (Feed::kRests) decayed_rest[t][i] = rest[t][i];
      }
    }
    DecayValues(*shared, count, &decayed, &decayed_rest);
    FenceGroup();
    AddProducts<kDim>(decayed, k, state);
    if constexpr (Feed::kRests) {
      AddProducts<kDim>(decayed, k + kRest, state);
      AddProducts<kDim>(decayed_rest, k, state);
    }
    CommitGroup();
    WaitForGroups<1>(o);
    StoreOutputs(o, count, width, out);
    WaitForGroups<0>(state);
  }
};

template <typename Feed>
__global__ void __launch_bounds__(Feed::kThreads, 1)
    AttendRows(LightningAttentionArgs args, int block_rows, int stages) {
  extern __shared__ __align__(1024) char memory[];
  constexpr int kDim = Feed::kDim;
  BlockRows block;
  if (!FindBlock(args, block_rows, &block)) return;
  BFloat16* const tiles = reinterpret_cast<BFloat16*>(memory);
  Shared* const shared =
      reinterpret_cast<Shared*>(memory + stages * Feed::kStageBytes);
  if (threadIdx.x >= Feed::kProductThreads) {
    GiveRegisters<kFeedRegisters<Feed>>();
    FeedWarp<Feed>(args, block,
                   memory + stages * Feed::kStageBytes + sizeof(Shared),
                   (threadIdx.x - Feed::kProductThreads) / kWarp)
        .Run(tiles, stages);
  } else {
    TakeRegisters<kProductRegisters<Feed>>();
    // Seen by all after the first chunk's barrier.
    for (int n = static_cast<int>(threadIdx.x) - kChunk; n <= kChunk;
         n += Feed::kProductThreads) {
      shared->powers[kChunk + n] =
          n < 0 ? 0.0f : expf(-args.decay_rates[block.head] * n);
    }
    float state[kDim / 2] = {};
    const int64_t slot_in = args.segments.state_in[block.segment];
    const float* const in =
        !block.whole
            ? BlockState(args, block_rows, block.row, block.first, block.head)
        : slot_in >= 0 ? SlotState(args, slot_in, block.head)
                       : nullptr;
    if (in != nullptr) {
      ForEachElement<kDim>(state, [&](int i, float* s) { *s = in[i]; });
    }
    const int64_t width = int64_t{args.num_heads} * kDim;
    float* const out = args.workspace + block.row * width + block.head * kDim;
    int stage = 0;
    for (int begin = 0; begin < block.count; begin += kChunk) {
      SyncAt<Feed::kThreads>(kFull + stage);
      Attend<Feed>::Chunk(tiles + stage * (Feed::kStageBytes / 2),
                          min(kChunk, block.count - begin), width, shared,
                          state, out + begin * width);
      if (begin + stages * kChunk < block.count) {
        ArriveAtNamed<Feed::kThreads>(kEmpty + stage);
      }
      stage = stage + 1 == stages ? 0 : stage + 1;
    }
  }
}

// ---- Launching.

template <typename Feed, typename... Params, typename... Args>
void LaunchRows(void (*kernel)(LightningAttentionArgs, int, int, Params...),
                const char* name, int more_bytes,
                const LightningAttentionArgs& args, int block_rows,
                Stream* stream, Args... more) {
  const int bytes = more_bytes + Feed::RingBytes(args.rope.half);
  const int stages = 2 * Feed::kStageBytes + bytes <= kMaxSharedBytes ? 2 : 1;
  const int all = stages * Feed::kStageBytes + bytes;
  RING_CHECK_LE(all, kMaxSharedBytes);
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, all));
  const dim3 grid(
      static_cast<unsigned>(args.num_heads),
      Blocks(MaxPromptTiles(args.segments, args.rows, block_rows), 1));
  kernel<<<grid, Feed::kThreads, all, stream->get()>>>(args, block_rows, stages,
                                                       more...);
  CheckLaunch(name);
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

template <typename T, int kDim, bool kExact, bool kPlain>
void Launch(const LightningAttentionArgs& args, Stream* stream) {
  using SumFeed = PromptFeed<T, kDim, true, false, kPlain>;
  using AttendFeed = PromptFeed<T, kDim, kExact, true, kPlain>;
  const int block_rows = LightningBlockRows(args.num_heads);
  const auto sum = [&](bool whole) {
    LaunchRows<SumFeed>(SumRows<SumFeed>, "SumRows", 0, args, block_rows,
                        stream, whole);
  };
  if (args.rows > block_rows) {
    sum(false);
    LaunchStart(args, block_rows, stream);
  }
  LaunchRows<AttendFeed>(AttendRows<AttendFeed>, "AttendRows", sizeof(Shared),
                         args, block_rows, stream);
  // Last, since it may write the states that these segments began with.
  sum(true);
}

}  // namespace

void LightningPromptSegments(const LightningAttentionArgs& args,
                             Stream* stream) {
  const bool exact = args.out_dtype == DType::kFloat32;
  WithFloatType(args.qkv_dtype, [&](auto type) {
    using T = decltype(type);
    if (args.head_dim == 64) {
      if (exact) {
        Launch<T, 64, true, false>(args, stream);
      } else {
        Launch<T, 64, false, false>(args, stream);
      }
    } else if (exact) {
      Launch<T, 128, true, false>(args, stream);
    } else if (IsPlainFeed(args)) {
      Launch<T, 128, false, true>(args, stream);
    } else {
      Launch<T, 128, false, false>(args, stream);
    }
  });
}

}  // namespace ring::cuda
