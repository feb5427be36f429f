// Weights streamed from memory straight into the fragments of tensor cores: the
// engine of the decode kernels.
//
//   out[i][n] = sum_k x[i][k] w[n][k],   few i, bf16 x, bf16 or e4m3 w
//
// A block of 8 warps owns one or two tiles of 16 weight rows. A step is what 4
// lanes load of a row at a time, 64 bytes; the warps take the steps of the
// columns in turn, and their sums meet in shared memory. The weights are the 16
// rows of mma.m16n8k16, activation rows its 8 columns: a column's bits depend
// neither on the other columns nor on their number. The order of k within a
// step differs from the one that the instruction names, for both factors alike,
// which a sum does not see.
//
// Memory is kept busy by many warps on a multiprocessor (4 blocks of 64
// registers a thread), or by loads of a step that are issued before the
// products of the step before it (kAhead), where there are fewer.
//
// e4m3 becomes bf16 by moving bits, which leaves 2^-120 of the value: the
// conversion instructions would bound the kernel at half of the memory's rate.
// The activations get a factor of 2^64 before they are multiplied, and both are
// taken back with the scale of the columns; all of it is exact. So activations
// have to stay below 2^63; the two NaN codes of e4m3 read as 480.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda_math.cuh"
#include "kernels/linear/device_matrix.cuh"
#include "kernels/linear/tile_gemm.cuh"

namespace ring::cuda {

inline constexpr int kStreamWarps = 8;
inline constexpr int kStreamThreads = kStreamWarps * kWarp;
inline constexpr int kFragmentRows = 16;  // of the weights
inline constexpr int kGroupRows = 8;      // activation rows of one fragment

template <typename W>
struct StreamStep {
  static constexpr int kUnit = kWideBytes / static_cast<int>(sizeof(W));
  static constexpr int kColumns = 4 * kUnit;
};

// Whether StreamProduct takes this matrix: a question of types and shapes
// alone, so that a row meets the same kernel in every batch.
inline bool FillsFragments(const WeightMatrix& w) {
  if (w.cols == 0 || w.cols > (int64_t{1} << 30) || !AllowsWideLoads(w)) {
    return false;
  }
  if (w.dtype == DType::kBFloat16) {
    return w.cols % StreamStep<BFloat16>::kColumns == 0;
  }
  constexpr int kColumns = StreamStep<Float8E4M3>::kColumns;
  return w.dtype == DType::kFloat8E4M3 && w.cols % kColumns == 0 &&
         w.scale_col_offset % kColumns == 0;
}

// One row of weights as a lane reads it.
template <typename W>
struct StreamRow {
  const W* data = nullptr;
  int scales = 0;  // place of the row's scales in the matrix's; e4m3 only
};

template <typename W>
__device__ inline StreamRow<W> StreamRowOf(const WeightMatrix& w, int64_t n) {
  n = min(n, w.rows - 1);
  StreamRow<W> row;
  row.data = static_cast<const W*>(w.data) + n * w.row_stride;
  if constexpr (sizeof(W) == 1) {
    row.scales = static_cast<int>(w.row_scale[n] * w.scale_cols);
  }
  return row;
}

// 16 bytes of weights as pairs of bf16, those of e4m3 times 2^-120.
template <typename W>
__device__ __forceinline__ void UnpackWeights(
    const uint4& raw, uint32_t (&pairs)[StreamStep<W>::kUnit / 2]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(W) == 2) {
      pairs[i] = words[i];
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Each byte as the upper one of 16 bits; then sign, exponent, mantissa.
        const uint32_t wide =
            __byte_perm(words[i], 0, half == 0 ? 0x1404 : 0x3424);
        pairs[2 * i + half] = (wide & 0x80008000u) | (wide >> 4 & 0x07f007f0u);
      }
    }
  }
}

template <typename W>
__device__ __forceinline__ uint4 LoadActivations(const BFloat16* from) {
  uint4 v = *reinterpret_cast<const uint4*>(from);
  if constexpr (sizeof(W) == 1) {
    const __nv_bfloat162 up = __float2bfloat162_rn(0x1p64f);
    __nv_bfloat162* const pairs = reinterpret_cast<__nv_bfloat162*>(&v);
#pragma unroll
    for (int p = 0; p < 4; ++p) pairs[p] = __hmul2(pairs[p], up);
  }
  return v;
}

// The steps of one block's rows that the calling warp takes. Begin() issues
// the first loads of weights and touches nothing else, so a kernel may call it
// before the activations are there.
template <typename W, int kTiles, bool kAhead>
class WeightStream {
 public:
  static constexpr int kUnit = StreamStep<W>::kUnit;
  static constexpr int kColumns = StreamStep<W>::kColumns;
  static constexpr int kPairs = kUnit / 2;
  static constexpr int kTurn = kStreamWarps * kColumns;  // of a block

  // low[t], high[t]: rows lane / 4 and lane / 4 + 8 of tile t, of a matrix with
  // scales[t]; those of a single tile may be of two matrices, scales[0] and
  // scales[1].
  __device__ WeightStream(const StreamRow<W> (&low)[kTiles],
                          const StreamRow<W> (&high)[kTiles],
                          const float* const (&scales)[2], int cols,
                          int scale_col_offset)
      : scales_{scales[0], scales[1]},
        cols_(cols),
        scale_col_offset_(scale_col_offset) {
    const int unit = threadIdx.x % 4 * kUnit;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      rows_[t][0] = low[t];
      rows_[t][1] = high[t];
      rows_[t][0].data += unit;
      rows_[t][1].data += unit;
    }
  }

  __device__ __forceinline__ void Begin() {
    k_ = threadIdx.x / kWarp * kColumns;
    if (k_ < cols_) Fetch(k_, next_);
  }

  // sums[t][g] = this warp's part of the products with the rows x[g], each the
  // row lane / 4 of its group.
  template <int kGroups>
  __device__ __forceinline__ void Multiply(const BFloat16* const (&x)[kGroups],
                                           float (&sums)[kTiles][kGroups][4]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[t][g][v] = 0;
      }
    }
    const int unit = threadIdx.x % 4 * kUnit;
    // Two steps a turn spare the copies of registers; more warps fit without.
#pragma unroll(kAhead&& kGroups > 1 ? 2 : 1)
    for (int k = k_; k < cols_; k += kTurn) {
      uint4 raw[kTiles][2];
      if (!kAhead && k != k_) Fetch(k, next_);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        raw[t][0] = next_[t][0];
        raw[t][1] = next_[t][1];
      }
      uint32_t b[kGroups][kPairs];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < kPairs / 4; ++i) {
          const uint4 v = LoadActivations<W>(x[g] + k + unit + 8 * i);
          b[g][4 * i] = v.x;
          b[g][4 * i + 1] = v.y;
          b[g][4 * i + 2] = v.z;
          b[g][4 * i + 3] = v.w;
        }
      }
      const int following = k + kTurn;
      if (kAhead && following < cols_) Fetch(following, next_);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t low[kPairs];
        uint32_t high[kPairs];
        UnpackWeights<W>(raw[t][0], low);
        UnpackWeights<W>(raw[t][1], high);
        float low_scale = 1;
        float high_scale = 1;
        if constexpr (sizeof(W) == 1) {
          const int block =
              (scale_col_offset_ + k) / static_cast<int>(kScaleBlock);
          low_scale = 0x1p56f * ScaleOf(t, 0, block);
          high_scale = 0x1p56f * ScaleOf(t, 1, block);
        }
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          float part[4] = {};
#pragma unroll
          for (int i = 0; i < kPairs; i += 2) {
            MultiplyFragment({low[i], high[i], low[i + 1], high[i + 1]},
                             {b[g][i], b[g][i + 1]},
                             sizeof(W) == 1 ? part : sums[t][g]);
          }
          if constexpr (sizeof(W) == 1) {
            sums[t][g][0] += low_scale * part[0];
            sums[t][g][1] += low_scale * part[1];
            sums[t][g][2] += high_scale * part[2];
            sums[t][g][3] += high_scale * part[3];
          }
        }
      }
    }
  }

 private:
  __device__ __forceinline__ float ScaleOf(int t, int half, int block) const {
    return scales_[kTiles == 1 ? half : t][rows_[t][half].scales + block];
  }
  __device__ __forceinline__ void Fetch(int k, uint4 (&to)[kTiles][2]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to[t][half] =
            __ldcs(reinterpret_cast<const uint4*>(rows_[t][half].data + k));
      }
    }
  }

  StreamRow<W> rows_[kTiles][2];
  const float* scales_[2];
  const int cols_;
  const int scale_col_offset_;
  int k_ = 0;
  uint4 next_[kTiles][2];
};

// Where the warps' sums meet. [warp][token][row, 1 unused]
template <int kTiles, int kGroups>
struct StreamPartial {
  float sums[kStreamWarps][kGroups * kGroupRows][kTiles * kFragmentRows + 1];

  // By all threads; then a barrier.
  __device__ void Put(const float (&values)[kTiles][kGroups][4]) {
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          sums[warp][g * kGroupRows + lane % 4 * 2 + v % 2]
              [t * kFragmentRows + lane / 4 + v / 2 * 8] = values[t][g][v];
        }
      }
    }
  }
  // The sum over the warps, in their order.
  __device__ float Get(int token, int row) const {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kStreamWarps; ++warp) {
      sum += sums[warp][token][row];
    }
    return sum;
  }
};

}  // namespace ring::cuda
