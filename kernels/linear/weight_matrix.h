// A weight matrix as this rank holds it: y = x @ w.T with w of [rows, cols].
#pragma once

#include <cstdint>
#include <numeric>

#include "kernels/base/dtype.h"

namespace ring {

// Block FP8 has one scale per 128 x 128 block of the whole tensor.
inline constexpr int64_t kScaleBlock = 128;

// Rows and columns of a stored tensor, or a part of them. A view: the memory
// belongs to whoever loaded the model and outlives every WeightMatrix into it.
// Immutable after loading, so any thread may read it.
//
// Element (i, j) lies at data[i * row_stride + j]. `data` starts on a 64-byte
// boundary unless this is a slice of another matrix (Rows, Columns).
struct WeightMatrix {
  const void* data = nullptr;      // [rows, cols] of dtype
  DType dtype = DType::kBFloat16;  // kBFloat16, kFloat32 or kFloat8E4M3
  int64_t rows = 0;                // outputs on this rank
  int64_t cols = 0;                // inputs on this rank
  int64_t row_stride = 0;          // elements from one row to the next

  // FP8 only, null otherwise:
  //   w[i][j] = ToFloat(data[i][j]) *
  //             scales[row_scale[i] * scale_cols + (scale_col_offset + j) /
  //             128]
  // row_scale makes a matrix out of row ranges of a tensor that neither start
  // nor end on a multiple of 128: each row names the block row it comes from.
  const float* scales = nullptr;       // [scale rows, scale_cols]
  const int32_t* row_scale = nullptr;  // [rows]
  int64_t scale_cols = 0;
  int64_t scale_col_offset = 0;
  // Rows i and j share a scale row if i / scale_row_run == j / scale_row_run;
  // a divisor of 128. 1 promises nothing.
  int64_t scale_row_run = 1;

  bool empty() const { return rows == 0 || cols == 0; }
};

// The rows [begin, end) of `w`, sharing its memory.
inline WeightMatrix Rows(const WeightMatrix& w, int64_t begin, int64_t end) {
  WeightMatrix part = w;
  part.data = static_cast<const char*>(w.data) +
              begin * w.row_stride * static_cast<int64_t>(SizeOf(w.dtype));
  part.rows = end - begin;
  if (w.row_scale != nullptr) part.row_scale = w.row_scale + begin;
  part.scale_row_run = std::gcd(w.scale_row_run, begin);
  return part;
}

// The columns [begin, end) of `w`, sharing its memory.
inline WeightMatrix Columns(const WeightMatrix& w, int64_t begin, int64_t end) {
  WeightMatrix part = w;
  part.data = static_cast<const char*>(w.data) +
              begin * static_cast<int64_t>(SizeOf(w.dtype));
  part.cols = end - begin;
  if (w.scales != nullptr) part.scale_col_offset = w.scale_col_offset + begin;
  return part;
}

}  // namespace ring
