// Products of activation rows with a weight matrix, for the ops that are made
// of them: describe (DotProduct), pack the activations, compute ranges of
// outputs on any thread.
#pragma once

#include <cstdint>

#include "kernels/linear/dot_panel.h"
#include "kernels/linear/weight_matrix.h"
#include "kernels/simd/isa.h"

namespace ring {

class ThreadPool;

// The kernel and the packed layout for activations of one type and weights of
// one shape. Matrices of equal dtype, cols and scale_col_offset % 128 share it.
struct DotProduct {
  const DotKernel* kernel = nullptr;
  DotLayout layout;
};

// REQUIRES: isa <= DetectCpuIsa().
DotProduct MakeDotProduct(DType x_dtype, const WeightMatrix& weight,
                          CpuIsa isa = ActiveCpuIsa());

// Where rows come from: row i is the one at index[i], or i if index is null, of
// a matrix of layout.cols columns without gaps.
struct RowSource {
  const void* x = nullptr;
  DType dtype = DType::kFloat32;
  const int32_t* index = nullptr;
};

// The rows that a packed block of `rows` rows has room for. Its words are
// PackedRows(...) * layout.packed_words.
int64_t PackedRows(const DotProduct& product, int64_t rows);

// At least that many, and at least layout.packed_words, of any product with
// `cols` columns.
constexpr int64_t MaxPackedRows(int64_t rows) {
  return rows + kMaxBlockRows - 1;
}
constexpr int64_t MaxPackedWords(int64_t cols) {
  return cols + 2 * kScaleBlock;
}

// Packs `rows` rows as one block, on the pool's threads or, if it is null, on
// the caller.
void PackRows(const DotProduct& product, const RowSource& source, int64_t rows,
              int32_t* packed, ThreadPool* pool);

// out[i * out_stride + n - n_begin] = x_i . w_n for n in [n_begin, n_end), for
// the rows of a packed block. Runs on the calling thread.
void MultiplyRows(const DotProduct& product, const int32_t* packed,
                  int64_t rows, const WeightMatrix& weight, int64_t n_begin,
                  int64_t n_end, float* out, int64_t out_stride);

// Outputs are best computed in multiples of this many weight rows: whole tiles
// of every kernel.
inline constexpr int64_t kDotRowAlign = 48;

// The grain for a loop over `items` that make up `macs` multiply-adds in all:
// large enough that a range is worth waking a thread for, so small products
// stay on the caller. A multiple of `align` (or all items).
int64_t DotGrain(int64_t items, int64_t macs, int64_t align);

}  // namespace ring
