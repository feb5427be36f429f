// A chunk of 64 rows of one head of 128 in shared memory, and how it gets
// there: for prefill_group.cu.
#pragma once

#include "kernels/lightning_attention/lightning_kernels.cuh"
#include "kernels/warpgroup.cuh"

namespace ring::cuda {

inline constexpr int kHeadDim = 128;
inline constexpr int kChunkRows = 64;
inline constexpr int kHeadParts = kHeadDim / 32;  // of a head held by 8 lanes
inline constexpr int kPrepareThreads = 256;

// What WalkGroups is for: what a block adds to a state of zero; its outputs, to
// the workspace; its outputs after group norm and gate.
enum class WalkGoal { kState, kRaw, kFinished };

using ChunkMatrix = BFloat16[kChunkRows * kHeadDim];

// A chunk, in slabs; zeros behind the segment's last row.
struct PromptChunk {
  union {
    struct {
      ChunkMatrix q;
      ChunkMatrix k;
    };
    float o[kChunkRows * kHeadDim];  // once the scores and S^T q^T are there
  };
  ChunkMatrix decayed_k[2];  // high and rest
  ChunkMatrix v[2];          // likewise
};

__device__ inline void StoreHigh(const float (&x)[kHeadParts][4], int row,
                                 ChunkMatrix* high) {
#pragma unroll
  for (int j = 0; j < kHeadParts; ++j) {
    StoreFour(x[j], &(*high)[SlabIndex(kChunkRows, row, HeadColumn(j))]);
  }
}

__device__ inline void StoreBoth(const float (&x)[kHeadParts][4], int row,
                                 ChunkMatrix (*both)[2]) {
#pragma unroll
  for (int j = 0; j < kHeadParts; ++j) {
    const int at = SlabIndex(kChunkRows, row, HeadColumn(j));
    const uint2 high = {PackBf16(x[j][0], x[j][1]), PackBf16(x[j][2], x[j][3])};
    *reinterpret_cast<uint2*>(&(*both)[0][at]) = high;
    *reinterpret_cast<uint2*>(&(*both)[1][at]) = {
        PackRest(x[j][0], x[j][1], high.x), PackRest(x[j][2], x[j][3], high.y)};
  }
}

__device__ inline void Scale(float factor, float (&x)[kHeadParts][4]) {
#pragma unroll
  for (int j = 0; j < kHeadParts; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[j][e] *= factor;
  }
}

// Rows [row, row + count) of the head's q, k and v. Called by 8 warps.
template <typename T, WalkGoal kGoal>
__device__ void PrepareChunk(const LightningAttentionArgs& args, int64_t row,
                             int count, int head, const float* power,
                             PromptChunk* chunk) {
  const int64_t width = int64_t{args.num_heads} * kHeadDim;
  const int half = args.rope.half;
  const int warp = threadIdx.x % kPrepareThreads / kWarp;
  const int group = threadIdx.x % kWarp / kHeadLanes;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    // Rows of a half-warp are 4 apart: they meet no bank twice.
    const int i = warp * 8 + group % 2 * 4 + group / 2 * 2 + pass;
    const bool real = i < count;
    const int64_t from_row = row + (real ? i : 0);
    const T* const from = static_cast<const T*>(args.qkv) +
                          from_row * 3 * width + head * kHeadDim;
    const float* const cos = args.rope.cos + from_row * half;
    const float* const sin = args.rope.sin + from_row * half;
    const float keep = real ? 1.0f : 0.0f;
    float k[kHeadParts][4], v[kHeadParts][4];
    LoadHeadPart(from + width, k);
    LoadHeadPart(from + 2 * width, v);
    if (args.silu) {
      Silu(k);
      Silu(v);
    }
    NormAndRotatePart(from + width, args.k_norm, args.eps, cos, sin, half,
                      args.silu, k);
    if constexpr (kGoal != WalkGoal::kState) {
      Scale(keep, k);
      StoreHigh(k, i, &chunk->k);
    }
    Scale(keep * power[max(count - 1 - i, 0)], k);
    StoreBoth(k, i, &chunk->decayed_k);
    Scale(keep, v);
    StoreBoth(v, i, &chunk->v);
    if constexpr (kGoal != WalkGoal::kState) {
      float q[kHeadParts][4];
      LoadHeadPart(from, q);
      if (args.silu) Silu(q);
      NormAndRotatePart(from, args.q_norm, args.eps, cos, sin, half, args.silu,
                        q);
      Scale(keep / sqrtf(static_cast<float>(kHeadDim)), q);
      StoreHigh(q, i, &chunk->q);
    }
  }
}

// Asks for `count` rows from `row` on: of q, k, v, and of the gate, which is
// needed at the end of a chunk.
template <typename T, WalkGoal kGoal>
__device__ void PrefetchRows(const LightningAttentionArgs& args, int64_t row,
                             int count, int head) {
  constexpr int kFirst = kGoal == WalkGoal::kState ? 1 : 0;
  constexpr int kMatrices = kGoal == WalkGoal::kFinished ? 4 : 3 - kFirst;
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  constexpr int kLines = kHeadDim / kLine;  // of a row's head
  const int64_t width = int64_t{args.num_heads} * kHeadDim;
  for (int i = threadIdx.x % kPrepareThreads; i < count * kMatrices * kLines;
       i += kPrepareThreads) {
    const int64_t from_row = row + i / (kMatrices * kLines);
    const int matrix = kFirst + i / kLines % kMatrices;
    const T* const from =
        matrix == 3
            ? static_cast<const T*>(args.gate) + from_row * width
            : static_cast<const T*>(args.qkv) + (from_row * 3 + matrix) * width;
    PrefetchLine(from + head * kHeadDim + i % kLines * kLine);
  }
}

}  // namespace ring::cuda
