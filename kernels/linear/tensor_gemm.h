// Products of many rows on Hopper's tensor cores, for one matrix or for groups
// of rows that use one matrix each.
#pragma once

#include <cstdint>

#include "kernels/linear/weight_matrix.h"

namespace ring::cuda {

class Stream;

inline constexpr int kTileRows = 128;
// Rows that use one matrix start on a multiple of this.
inline constexpr int kRowAlign = 64;

// Matrices of equal shape at equal distances in memory.
struct MatrixGroup {
  WeightMatrix first;
  int64_t count = 1;
  int64_t data_stride = 0;       // bytes from one matrix to the next
  int64_t scales_stride = 0;     // elements
  int64_t row_scale_stride = 0;  // elements
};

// Up to kTileRows consecutive rows that use one matrix. Neighbouring tiles of a
// matrix form bands, which read it at the same time.
struct alignas(16) RowTile {
  int32_t matrix;
  int32_t row;         // the first, a multiple of kRowAlign
  int32_t rows;        // 1 .. kTileRows
  int16_t in_band;     // number of this tile in its band
  int16_t band_tiles;  // of its band
};
inline constexpr int kMaxBand = 8;

// y[i] = x[i] w^T, or silu(x[i] gate^T) * (x[i] up^T).
//
// bf16 x bf16 accumulates in fp32. e4m3 x e4m3 accumulates 128 columns in the
// tensor cores, multiplies the sum by the scales of the row and of the weight
// block and adds it in fp32.
struct TensorGemmArgs {
  const void* x = nullptr;          // [x_rows, w.first.cols] of w's type
  const float* x_scales = nullptr;  // [x_rows, ScaleStride(cols)], e4m3 only
  int64_t x_rows = 0;               // rows that may be read
  MatrixGroup w;                    // with `up`: the gate
  const MatrixGroup* up = nullptr;
  // Which rows use which matrix; null: all rows use the first.
  const RowTile* tiles = nullptr;
  const int32_t* num_tiles = nullptr;  // on the device
  // [x_rows, w.first.rows]: bf16 or fp32. With `up`: of w's type, e4m3 with
  // scales as x_scales. Rows that no tile names are not written.
  void* y = nullptr;
  DType y_dtype = DType::kBFloat16;
  float* y_scales = nullptr;
  bool accumulate = false;     // y += instead of y =; fp32 only
  int32_t* counter = nullptr;  // scratch of the op, on the device
};

// Elements from one row's scales to the next: one per 128 columns, rounded up.
constexpr int64_t ScaleStride(int64_t cols) {
  return (cols / kScaleBlock + 3) / 4 * 4;
}

// Whether TensorGemm takes a matrix: bf16 or e4m3, dimensions in multiples of
// 128, and scale blocks that do not begin inside of 64 rows or 128 columns.
bool TensorGemmTakes(const WeightMatrix& w);
// ... and the matrix is large enough to make it worthwhile. Products of a small
// e4m3 matrix keep activations of bf16.
bool PrefersTensorGemm(const WeightMatrix& w);

void TensorGemm(const TensorGemmArgs& args, Stream* stream);

// Where QuantiseRows puts a row: into `copies` places named by place[row *
// copies + i], -1 for none, or, without a table, into its own place.
struct RowPlaces {
  const int32_t* place = nullptr;
  int copies = 1;
};

// Rows of bf16 as e4m3 with one scale per row and 128 columns: scale = max |x|
// / 448, stored value = round(x * (448 / max |x|)). cols in multiples of 128.
struct QuantiseRowsArgs {
  const void* x = nullptr;  // [rows, cols] bf16
  int64_t rows = 0;
  int64_t cols = 0;
  RowPlaces places;
  void* quantised = nullptr;  // [places, cols]
  float* scales = nullptr;    // [places, ScaleStride(cols)]
};
void QuantiseRows(const QuantiseRowsArgs& args, Stream* stream);

}  // namespace ring::cuda
