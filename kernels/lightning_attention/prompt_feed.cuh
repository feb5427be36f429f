// How rows of q, k and v reach the products of a chunk: 8 warps of a block
// fetch them in the background into rings of their own, norm, rotate and round
// them, and leave them in slabs (warpgroup.cuh) in shared memory, stage by
// stage.
//
// A warp has 8 of the 64 rows of a chunk and prepares them in groups of 4, a
// row by 8 lanes. So what it fetches needs no barrier between warps, and a ring
// of some groups is always on its way from memory.
#pragma once

#include "kernels/attention_rows.cuh"
#include "kernels/lightning_attention/lightning_kernels.cuh"
#include "kernels/warpgroup.cuh"

namespace ring::cuda {

inline constexpr int kChunk = 64;
inline constexpr int kFeedWarps = 8;
inline constexpr int kFeedThreads = kFeedWarps * kWarp;
inline constexpr int kGroupRows = kWarp / kHeadLanes;
inline constexpr int kChunkGroups = kChunk / kFeedWarps / kGroupRows;

// Barriers between the warps that feed and those that multiply, by number; 0
// is __syncthreads.
enum NamedBarrier { kFull = 1, kEmpty = 3, kScores = 5 };
template <int kThreads>
__device__ inline void SyncAt(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}
template <int kThreads>
__device__ inline void ArriveAtNamed(int barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// The tiles of a chunk that a stage holds. kOutput: q, k and v for outputs;
// else k, decayed to the end of the rows, and v. Copies of a tile: values
// rounded to bf16 and, for kRests, what rounding took. kPlain: see IsPlainFeed.
template <typename T, int kHeadDim, bool kWithRests, bool kWithOutput,
          bool kIsPlain>
struct PromptFeed {
  using Type = T;
  static constexpr int kDim = kHeadDim;
  static constexpr bool kRests = kWithRests;
  static constexpr bool kOutput = kWithOutput;
  static constexpr bool kPlain = kIsPlain;
  static constexpr int kMatrices = kOutput ? 3 : 2;
  static constexpr int kCopies = kRests ? 2 : 1;
  static constexpr int kTileElements = kChunk * kDim;
  static constexpr int kK = 0;
  static constexpr int kV = kCopies;
  static constexpr int kQ = 2 * kCopies;
  static constexpr int kStageBytes = kMatrices * kCopies * kTileElements * 2;
  static constexpr int kSlabBytes = kChunk * kSlabRowBytes;

  // A warp multiplies for 16 columns of v.
  static constexpr int kProductThreads = kDim / 16 * kWarp;
  static constexpr int kThreads = kProductThreads + kFeedThreads;

  // Groups of a warp's ring. Rows of bf16 are padded: two rows of 8 lanes shall
  // be in different banks.
  static constexpr int kRing = kRests && kOutput ? 1 : sizeof(T) == 2 ? 3 : 2;
  static constexpr int kRawBytes =
      kDim * static_cast<int>(sizeof(T)) + (sizeof(T) == 2 ? 64 : 0);
  static __host__ __device__ int GroupBytes(int half) {
    return kGroupRows *
           (kMatrices * kRawBytes + 2 * half * static_cast<int>(sizeof(float)));
  }
  static __host__ __device__ int RingBytes(int half) {
    return kFeedWarps * kRing * GroupBytes(half);
  }

  // Whether rounding v to bf16 takes anything from it.
  static __device__ bool HasRestOfV(const LightningAttentionArgs& args) {
    return sizeof(T) != 2 || args.silu;
  }
};

// Whether a lane has both halves of every rotated pair, and no SiLU comes
// before.
inline bool IsPlainFeed(const LightningAttentionArgs& args) {
  const int half = args.rope.half;
  return !args.silu && (half == kPartColumns ||
                        (args.head_dim == 128 && half == 2 * kPartColumns));
}

// Rows [row, row + count) of one head.
struct RowRange {
  int64_t row;
  int count;
  int head;
};

template <typename Feed>
class FeedWarp {
 public:
  using T = typename Feed::Type;
  static constexpr int kDim = Feed::kDim;

  // `ring` is the block's memory for rings, `warp` counts the feeding warps.
  __device__ FeedWarp(const LightningAttentionArgs& args, const RowRange& rows,
                      char* ring, int warp)
      : args_(args),
        rows_(rows),
        group_bytes_(Feed::GroupBytes(args.rope.half)),
        ring_(ring + warp * Feed::kRing * group_bytes_),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        half_(args.rope.half),
        warp_row_(warp * kGroupRows * kChunkGroups),
        row_stride_(int64_t{3} * args.num_heads * kDim) {
    const int64_t width = int64_t{args.num_heads} * kDim;
    fetch_.row = warp_row_;
    fetch_.from =
        static_cast<const T*>(args.qkv) +
        (rows.row + warp_row_ + Spread(lane_ / kUnits)) * row_stride_ +
        (3 - Feed::kMatrices) * width + int64_t{rows.head} * kDim +
        lane_ % kUnits * kUnit;
    const int units = half_ / 4;
    fetch_.angles = (lane_ < units ? args.rope.cos + lane_ * 4
                                   : args.rope.sin + (lane_ - units) * 4) +
                    (rows.row + warp_row_) * half_;
  }

  // Feeds all chunks through `stages` stages.
  __device__ void Run(BFloat16* tiles, int stages) {
#pragma unroll 1
    for (int i = 0; i < Feed::kRing; ++i) Fetch(i, i % kChunkGroups);
    int slot = 0;
    int stage = 0;
#pragma unroll 1
    for (int begin = 0; begin < rows_.count; begin += kChunk) {
      BFloat16* const to = tiles + stage * (Feed::kStageBytes / 2);
      if (begin >= stages * kChunk) SyncAt<Feed::kThreads>(kEmpty + stage);
#pragma unroll 1
      for (int group = 0; group < kChunkGroups; ++group) {
        WaitForCopies<Feed::kRing - 1>();
        __syncwarp();
        const int row =
            warp_row_ + group * kGroupStep + Spread(lane_ / kHeadLanes);
        if constexpr (Feed::kPlain) {
          PreparePlain(slot, begin, row, to);
        } else {
          Prepare(slot, begin, row, to);
        }
        __syncwarp();
        Fetch(slot, (group + Feed::kRing) % kChunkGroups);
        slot = slot + 1 == Feed::kRing ? 0 : slot + 1;
      }
      FenceShared();
      ArriveAtNamed<Feed::kThreads>(kFull + stage);
      stage = stage + 1 == stages ? 0 : stage + 1;
    }
  }

 private:
  static constexpr int kParts = kDim / 32;
  static constexpr int kUnit = 16 / static_cast<int>(sizeof(T));  // of a copy
  static constexpr int kUnits = kDim / kUnit;  // of a row, a power of 2
  static constexpr int kRowsAtOnce = kWarp / kUnits;

  // Row i of a group counts from the group's first. Rows of half a warp are 4
  // apart, so that their units of a slab are in different banks.
  static constexpr int kGroupStep = kGroupRows / 2;
  static constexpr __device__ int Spread(int i) { return i % 2 * 4 + i / 2; }

  // Of a group's slot: the rows of one matrix after the other, then the angles.
  __device__ T* RawRow(int slot, int matrix, int i) const {
    return reinterpret_cast<T*>(ring_ + slot * group_bytes_ +
                                (matrix * kGroupRows + i) * Feed::kRawBytes);
  }
  __device__ float* RawAngles(int slot, int i) const {
    return reinterpret_cast<float*>(ring_ + slot * group_bytes_ +
                                    Feed::kMatrices * kGroupRows *
                                        Feed::kRawBytes) +
           i * 2 * half_;
  }

  // Sends the rows of the next group, number `group` of its chunk, on their
  // way; zeros behind the last.
  __device__ void Fetch(int slot, int group) {
    if (fetch_.row - warp_row_ - group * kGroupStep < rows_.count) {
      const int64_t width = int64_t{args_.num_heads} * kDim;
      const uint32_t to =
          SharedAddress(RawRow(slot, 0, lane_ / kUnits)) + lane_ % kUnits * 16;
#pragma unroll
      for (int i = 0; i < kGroupRows; i += kRowsAtOnce) {
        const bool real =
            fetch_.row + Spread(lane_ / kUnits) + Spread(i) < rows_.count;
        const T* const from = fetch_.from + Spread(i) * row_stride_;
#pragma unroll
        for (int matrix = 0; matrix < Feed::kMatrices; ++matrix) {
          CopyAsync(to + (matrix * kGroupRows + i) * Feed::kRawBytes,
                    from + matrix * width, real);
        }
      }
      if (lane_ < half_ / 2) {
        const uint32_t angles = SharedAddress(RawAngles(slot, 0)) + lane_ * 16;
#pragma unroll
        for (int i = 0; i < kGroupRows; ++i) {
          CopyAsync(angles + i * 8 * half_, fetch_.angles + Spread(i) * half_,
                    fetch_.row + Spread(i) < rows_.count);
        }
      }
    }
    CommitCopies();
    const int step =
        group + 1 < kChunkGroups ? kGroupStep : kChunk - group * kGroupStep;
    fetch_.row += step;
    fetch_.from += step * row_stride_;
    fetch_.angles += step * half_;
  }

  // What the row's k is multiplied with: for a state, its decay to the end.
  __device__ float KeyScale(int n) const {
    return Feed::kOutput
               ? 1.0f
               : expf(-args_.decay_rates[rows_.head] * (rows_.count - 1 - n));
  }
  static constexpr int kKey = Feed::kMatrices - 2;

  // The lane's part of row `row` of the chunk that begins at `begin`, to its
  // stage.
  __device__ void Prepare(int slot, int begin, int row, BFloat16* to) const {
    const int i = lane_ / kHeadLanes;
    const bool real = begin + row < rows_.count;
    const float* const angles = RawAngles(slot, i);
    const auto load = [&](int matrix, float(&x)[kParts][4]) {
      LoadHeadPart(RawRow(slot, matrix, i), x);
      if (args_.silu) Silu(x);
    };
    const auto rotate = [&](int matrix, const float* norm, float scale,
                            float(&x)[kParts][4]) {
      NormAndRotatePart(RawRow(slot, matrix, i), norm, args_.eps, angles,
                        angles + half_, half_, args_.silu, x);
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) x[j][e] = real ? x[j][e] * scale : 0.0f;
      }
    };
    float x[kParts][4];
    if constexpr (Feed::kOutput) {
      load(0, x);
      rotate(0, args_.q_norm, QueryScale(), x);
      Store(x, to + Feed::kQ * Feed::kTileElements, row, true);
    }
    load(kKey, x);
    rotate(kKey, args_.k_norm, KeyScale(begin + row), x);
    Store(x, to + Feed::kK * Feed::kTileElements, row, true);
    load(kKey + 1, x);
    Store(x, to + Feed::kV * Feed::kTileElements, row,
          Feed::kOutput || Feed::HasRestOfV(args_));
  }

  // The same for kPlain.
  __device__ void PreparePlain(int slot, int begin, int row,
                               BFloat16* to) const {
    const int i = lane_ / kHeadLanes;
    const bool real = begin + row < rows_.count;
    const float* const angles = RawAngles(slot, i);
    float x[kParts][4];
    if constexpr (Feed::kOutput) {
      NormAndRotate(RawRow(slot, 0, i), args_.q_norm, angles,
                    real ? QueryScale() : 0.0f, x);
      Store(x, to + Feed::kQ * Feed::kTileElements, row, true);
    }
    NormAndRotate(RawRow(slot, kKey, i), args_.k_norm, angles,
                  real ? KeyScale(begin + row) : 0.0f, x);
    Store(x, to + Feed::kK * Feed::kTileElements, row, true);
    const T* const v = RawRow(slot, kKey + 1, i);
    BFloat16* const v_to = to + Feed::kV * Feed::kTileElements;
    if constexpr (sizeof(T) == 2 && !(Feed::kRests && Feed::kOutput)) {
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
        *reinterpret_cast<uint2*>(v_to + At(row, j)) =
            *reinterpret_cast<const uint2*>(v + HeadColumn(j));
      }
    } else {
      LoadHeadPart(v, x);
      Store(x, v_to, row, true);
    }
  }

  static __device__ float QueryScale() {
    return 1.0f / sqrtf(static_cast<float>(kDim));
  }

  __device__ void NormAndRotate(const T* head, const float* norm,
                                const float* angles, float scale,
                                float (&x)[kParts][4]) const {
    LoadHeadPart(head, x);
    if (norm != nullptr) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) squares += x[j][e] * x[j][e];
      }
#pragma unroll
      for (int offset = 1; offset < kHeadLanes; offset *= 2) {
        squares += __shfl_xor_sync(kAllLanes, squares, offset);
      }
      // Rows of zeros behind the last stay zeros without eps too.
      scale = scale == 0 ? 0 : scale * rsqrtf(squares / kDim + args_.eps);
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
        float w[4];
        LoadFour(norm + HeadColumn(j), w);
#pragma unroll
        for (int e = 0; e < 4; ++e) x[j][e] *= scale * w[e];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) x[j][e] *= scale;
      }
    }
    if (half_ == kPartColumns) {
      RotatePairs<1>(angles, angles + half_, x);
    } else {
      RotatePairs<kParts / 2>(angles, angles + half_, x);
    }
  }

  // SlabIndex of the lane's part j of a row.
  static __device__ int At(int row, int j) {
    const int first = SlabIndex(kChunk, row, HeadColumn(0));
    return (first ^ (j % 2 * kPartColumns)) + j / 2 * (kChunk * kSlabColumns);
  }

  // Values and, for kRests, what rounding took from them, if wanted.
  static __device__ void Store(const float (&x)[kParts][4], BFloat16* to,
                               int row, bool rests) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const int at = At(row, j);
      const uint2 high = {PackBf16(x[j][0], x[j][1]),
                          PackBf16(x[j][2], x[j][3])};
      *reinterpret_cast<uint2*>(to + at) = high;
      if (Feed::kRests && rests) {
        *reinterpret_cast<uint2*>(to + Feed::kTileElements + at) = {
            PackRest(x[j][0], x[j][1], high.x),
            PackRest(x[j][2], x[j][3], high.y)};
      }
    }
  }

  const LightningAttentionArgs& args_;
  const RowRange rows_;
  const int group_bytes_;
  char* const ring_;
  const int lane_;
  const int half_;
  const int warp_row_;        // the warp's first row of a chunk
  const int64_t row_stride_;  // elements of qkv
  // The next group: its first row, and what the lane copies of it.
  struct {
    int row;
    const T* from;
    const float* angles;
  } fetch_;
};

}  // namespace ring::cuda
