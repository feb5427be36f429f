// Residual sum and RMS norm.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace ring {

class ThreadPool;

// residual[r] += sum over p, in order, of scale_p[r] * parts[p][r];
// normed[r] = residual[r] / sqrt(mean(residual[r]^2) + eps) * norm_weight.
struct ResidualNormArgs {
  // [num_parts] blocks of [rows, cols], block p at parts + p * part_stride
  // elements; bf16 or fp32. num_parts may be 0.
  const void* parts = nullptr;
  DType parts_dtype = DType::kFloat32;
  int num_parts = 0;
  int64_t part_stride = 0;

  int64_t rows = 0;
  int64_t cols = 0;
  float* residual = nullptr;  // [rows, cols] fp32, in and out

  // Null: no norm is taken.
  const float* norm_weight = nullptr;  // [cols]
  float eps = 0;
  void* normed = nullptr;  // [rows, cols] bf16 or fp32, rounded once
  DType normed_dtype = DType::kFloat32;

  // Norm groups that span `parts_per_group` consecutive parts: part p is
  // scaled by 1 / sqrt(S / group_width + group_eps), S being the sum over its
  // group of sum_of_squares[p * rows + r]. Null: all scales are 1.
  const float* sum_of_squares = nullptr;  // [num_parts, rows]
  int parts_per_group = 1;
  int64_t group_width = 0;
  float group_eps = 0;
};

namespace cpu {
void ResidualNorm(const ResidualNormArgs& args, ThreadPool* pool);
}
namespace cuda {
class Stream;
void ResidualNorm(const ResidualNormArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
