// Block FP8: e4m3 with one scale per 128 x 128 block of the whole tensor.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace ring {

// Per block: scale = max(largest |x|, 1e-4) / 448, q = x / scale, rounded to
// nearest even. x has whole blocks, or ends where the tensor does. Only the
// rectangle [row_begin, row_end) x [col_begin, col_end) of x is written; what
// lies outside of it counts for the scales alone.
struct QuantizeBlocksArgs {
  const void* x = nullptr;  // [rows, cols] bf16 or fp32
  DType x_dtype = DType::kBFloat16;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t col_begin = 0;
  int64_t col_end = 0;
  Float8E4M3* q = nullptr;  // [row_end - row_begin, col_end - col_begin]
  float* scales = nullptr;  // [ceil(rows / 128), ceil(cols / 128)]
};

namespace cpu {
// On the calling thread: whoever loads weights runs many of these at once.
void QuantizeBlocks(const QuantizeBlocksArgs& args);
}  // namespace cpu
namespace cuda {
class Stream;
void QuantizeBlocks(const QuantizeBlocksArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
