#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/linear/weight_matrix.h"
#include "kernels/weights/block_quantize.h"

namespace ring::cpu {
namespace {

constexpr float kFloat8Max = 448;
constexpr float kMinAmax = 1e-4f;

float Value(const QuantizeBlocksArgs& args, int64_t row, int64_t col) {
  const int64_t at = row * args.cols + col;
  return args.x_dtype == DType::kFloat32
             ? static_cast<const float*>(args.x)[at]
             : ToFloat(static_cast<const BFloat16*>(args.x)[at]);
}

// Quantises the block that begins at (row, col) and returns its scale.
float QuantizeBlock(const QuantizeBlocksArgs& args, int64_t row, int64_t col) {
  const int64_t row_end = std::min(row + kScaleBlock, args.rows);
  const int64_t col_end = std::min(col + kScaleBlock, args.cols);
  float amax = kMinAmax;
  for (int64_t i = row; i < row_end; ++i) {
    for (int64_t j = col; j < col_end; ++j) {
      amax = std::max(amax, std::fabs(Value(args, i, j)));
    }
  }
  const float scale = amax / kFloat8Max;
  const int64_t width = args.col_end - args.col_begin;
  for (int64_t i = std::max(row, args.row_begin);
       i < std::min(row_end, args.row_end); ++i) {
    for (int64_t j = std::max(col, args.col_begin);
         j < std::min(col_end, args.col_end); ++j) {
      args.q[(i - args.row_begin) * width + (j - args.col_begin)] =
          ToFloat8E4M3(Value(args, i, j) / scale);
    }
  }
  return scale;
}

}  // namespace

void QuantizeBlocks(const QuantizeBlocksArgs& args) {
  RING_CHECK(args.x_dtype == DType::kFloat32 ||
             args.x_dtype == DType::kBFloat16)
      << Name(args.x_dtype);
  float* scale = args.scales;
  for (int64_t row = 0; row < args.rows; row += kScaleBlock) {
    for (int64_t col = 0; col < args.cols; col += kScaleBlock) {
      *scale++ = QuantizeBlock(args, row, col);
    }
  }
}

}  // namespace ring::cpu
