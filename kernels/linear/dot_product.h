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

// At least DotProduct.layout.packed_words of any product with `cols` columns.
constexpr int64_t MaxPackedWords(int64_t cols) {
  return cols + 2 * kScaleBlock;
}

// Packs x [rows, cols], rows `x_dtype` elements and contiguous, into
// packed [rows, layout.packed_words].
void PackRows(const DotProduct& product, const void* x, DType x_dtype,
              int64_t rows, int32_t* packed, ThreadPool* pool);

// out[i * out_stride + n - n_begin] = x_i . w_n for n in [n_begin, n_end), with
// x_i packed by PackRows. Runs on the calling thread.
void MultiplyRows(const DotProduct& product, const int32_t* const* x,
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
