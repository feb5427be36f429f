// The core of products of block-FP8 weights, widened, with bf16 rows: wgmma
// with the weights as its 64 rows, in registers, and the activation rows as its
// columns, in shared memory.
//
// A stage in shared memory is a chunk of 128 columns, a scale block: rows of
// 128 bytes of weights and two slabs (warpgroup.cuh) of activation rows, both
// swizzled as the copy engine does it. e4m3 becomes bf16 by moving bits and a
// product with 2^120, both exact; the two NaN codes read as 480. Each chunk's
// products take its scale in fp32: they start from zero and are added to the
// sums; or, where registers are short, the sums are kept in units of the
// current chunk's scale and multiplied by the scale before over its own
// (RowScale).
#pragma once

#include <cuda_bf16.h>

#include "kernels/linear/weight_matrix.h"
#include "kernels/warpgroup.cuh"

namespace ring::cuda {

inline constexpr int kChunkColumns = static_cast<int>(kScaleBlock);
inline constexpr int kChunkSteps = kChunkColumns / 16;  // of wgmma
inline constexpr int kChunkSlabs = kChunkColumns / kSlabColumns;

// Place in the ring after `step` steps.
template <int kStages>
struct StageAt {
  int slot;
  uint32_t parity;
  __device__ explicit StageAt(int step)
      : slot(step % kStages), parity(step / kStages % 2) {}
};

// Two weights as bf16, times `factor`.
__device__ __forceinline__ uint32_t WidenPair(const char* from,
                                              __nv_bfloat162 factor) {
  const uint32_t raw = *reinterpret_cast<const uint16_t*>(from);
  // Each byte as the upper one of 16 bits; then sign, exponent, mantissa: the
  // value times 2^-120.
  const uint32_t wide = __byte_perm(raw, 0, 0x1404);
  const uint32_t bits = (wide & 0x80008000u) | (wide >> 4 & 0x07f007f0u);
  const __nv_bfloat162 product =
      __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits), factor);
  return *reinterpret_cast<const uint32_t*>(&product);
}

// A row's scale of the sums so far, and what a chunk changes.
struct RowScale {
  float sums = 0;
  float ratio = 1;        // what the sums are multiplied by
  __nv_bfloat162 factor;  // of the chunk's weights
  __device__ void Enter(float scale) {
    // Next to the sums' scale this is nothing; nor does it divide.
    const bool vanishes = !(fabsf(scale) > 0x1p-60f * fabsf(sums));
    ratio = vanishes ? 1.0f : sums / scale;
    sums = vanishes ? sums : scale;
    factor = __float2bfloat162_rn(vanishes ? 0.0f : 0x1p120f);
  }
};

// sums[p] += the products of a chunk. low, high: of the lane's two weight rows,
// both with number `swizzle` modulo 8, the columns 2 (lane % 4); tokens: the
// first slab, whose parts for the products p follow each other. All lanes of a
// warpgroup. kFew: half of the factors at a time, where registers are short.
// Without `keep` the sums start from zero.
template <bool kFew, int kProducts, int kSums>
__device__ __forceinline__ void MultiplyChunk(
    const char* low, const char* high, int swizzle, uint32_t tokens,
    int slab_bytes, __nv_bfloat162 low_factor, __nv_bfloat162 high_factor,
    bool keep, float (&sums)[kProducts][kSums]) {
  constexpr int kFactors = kFew ? kChunkSteps / 2 : kChunkSteps;
  constexpr int kHalf = kChunkSteps / 2;
  constexpr int kPartBytes = 2 * kSums * kSlabRowBytes;
  uint32_t a[kFactors][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int s = half * kHalf + i;
      const int at = (s ^ swizzle) * 16;
      a[s % kFactors][0] = WidenPair(low + at, low_factor);
      a[s % kFactors][1] = WidenPair(high + at, high_factor);
      a[s % kFactors][2] = WidenPair(low + at + 8, low_factor);
      a[s % kFactors][3] = WidenPair(high + at + 8, high_factor);
    }
    FenceGroup();
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int s = half * kHalf + i;
      constexpr int kSlabSteps = kChunkSteps / kChunkSlabs;
      const uint64_t b = DescribeSlab(tokens + s / kSlabSteps * slab_bytes +
                                      s % kSlabSteps * 32);
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        MultiplyGroup<false>(a[s % kFactors], b + (p * kPartBytes >> 4),
                             keep || s > 0, sums[p]);
      }
    }
    CommitGroup();
    if (half == 0 && !kFew) continue;
#pragma unroll
    for (int p = 0; p < kProducts; ++p) WaitForGroups<0>(sums[p]);
      // The factors are in use until here.
#pragma unroll
    for (int s = 0; s < kFactors; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" ::"r"(a[s][i]));
    }
  }
}

// What turns a moved weight into its value.
__device__ inline __nv_bfloat162 WideFactor() {
  return __float2bfloat162_rn(0x1p120f);
}

// Brings the sums into units of the chunk's scales.
template <int kProducts, int kSums>
__device__ __forceinline__ void Rescale(float low, float high,
                                        float (&sums)[kProducts][kSums]) {
#pragma unroll
  for (int p = 0; p < kProducts; ++p) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[p][i] *= i / 2 % 2 == 0 ? low : high;
    }
  }
}

}  // namespace ring::cuda
