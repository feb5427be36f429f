// A weight matrix in a kernel, and the streaming dot product over its rows.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/linear/weight_matrix.h"

namespace ring::cuda {

// Bytes that a lane loads at a time where the matrix allows it.
inline constexpr int kWideBytes = 16;

// Whether rows of `w` can be read in units of kWideBytes, which for e4m3 must
// not straddle two scales. Activations without gaps can then be read in units
// of as many elements.
inline bool AllowsWideLoads(const WeightMatrix& w) {
  const int64_t unit = kWideBytes / static_cast<int64_t>(SizeOf(w.dtype));
  return w.cols % unit == 0 && w.row_stride % unit == 0 &&
         reinterpret_cast<uintptr_t>(w.data) % kWideBytes == 0 &&
         (w.scales == nullptr || w.scale_col_offset % unit == 0);
}

// The scale of column j in row n; e4m3 only.
__device__ inline float ScaleAt(const WeightMatrix& w, int64_t n, int64_t j) {
  return w.scales[w.row_scale[n] * w.scale_cols +
                  (w.scale_col_offset + j) / kScaleBlock];
}

// acc[r][o] = this lane's part of x_r . w_{n + o}, for kRows activation rows
// and kOut consecutive weight rows. Lane l takes units l, l + 32, ... of the
// columns, so that the order of additions for a row depends on neither kRows
// nor kOut. Rows past `w.rows` repeat the last one; the caller drops them.
// x: kRows pointers to [cols] activations.
template <typename W, typename X, bool kWide, int kRows, int kOut>
__device__ inline void LaneDot(const WeightMatrix& w, int64_t n,
                               const X* const (&x)[kRows],
                               float (&acc)[kRows][kOut]) {
  constexpr int kUnit = kWide ? kWideBytes / static_cast<int>(sizeof(W)) : 1;
  const int lane = threadIdx.x % kWarp;
  const W* rows[kOut];
#pragma unroll
  for (int o = 0; o < kOut; ++o) {
    const int64_t row = n + o < w.rows ? n + o : w.rows - 1;
    rows[o] = static_cast<const W*>(w.data) + row * w.row_stride;
#pragma unroll
    for (int r = 0; r < kRows; ++r) acc[r][o] = 0;
  }
#pragma unroll 4
  for (int64_t j = lane * kUnit; j < w.cols; j += kWarp * kUnit) {
    float weight[kOut][kUnit];
#pragma unroll
    for (int o = 0; o < kOut; ++o) Load(rows[o] + j, weight[o]);
    float scale[kOut];
    if constexpr (sizeof(W) == 1) {
#pragma unroll
      for (int o = 0; o < kOut; ++o) {
        scale[o] = ScaleAt(w, n + o < w.rows ? n + o : w.rows - 1, j);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float value[kUnit];
      Load(x[r] + j, value);
#pragma unroll
      for (int o = 0; o < kOut; ++o) {
        if constexpr (sizeof(W) == 1) {
          float sum = 0;
#pragma unroll
          for (int u = 0; u < kUnit; ++u) sum += weight[o][u] * value[u];
          acc[r][o] += scale[o] * sum;
        } else {
#pragma unroll
          for (int u = 0; u < kUnit; ++u) {
            acc[r][o] += weight[o][u] * value[u];
          }
        }
      }
    }
  }
}

// As LaneDot, complete in every lane. A warp calls this as a whole.
template <typename W, typename X, bool kWide, int kRows, int kOut>
__device__ inline void WarpDot(const WeightMatrix& w, int64_t n,
                               const X* const (&x)[kRows],
                               float (&acc)[kRows][kOut]) {
  LaneDot<W, X, kWide>(w, n, x, acc);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int o = 0; o < kOut; ++o) acc[r][o] = WarpSum(acc[r][o]);
  }
}

}  // namespace ring::cuda
