#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/row_math.h"
#include "kernels/norm/residual_norm.h"

namespace ring::cpu {
namespace {

// Rows per hand-out: a row costs about a microsecond.
constexpr int64_t kRowGrain = 4;

// residual[i] += scale * part[i]
template <typename T>
void AddScaled(const T* part, float scale, int64_t n, float* residual) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      residual[i] += scale * part[i];
    } else {
      residual[i] += scale * ToFloat(part[i]);
    }
  }
}

// The scale of part `part` in row `row`: 1 / RMS of its norm group.
float PartScale(const ResidualNormArgs& args, int part, int64_t row) {
  if (args.sum_of_squares == nullptr) return 1.0f;
  const int first = part / args.parts_per_group * args.parts_per_group;
  float sum = 0;
  for (int p = first; p < first + args.parts_per_group; ++p) {
    sum += args.sum_of_squares[p * args.rows + row];
  }
  return InverseRms(sum, args.group_width, args.group_eps);
}

void AddParts(const ResidualNormArgs& args, int64_t row, float* residual) {
  for (int part = 0; part < args.num_parts; ++part) {
    const int64_t offset = part * args.part_stride + row * args.cols;
    const float scale = PartScale(args, part, row);
    if (args.parts_dtype == DType::kFloat32) {
      AddScaled(static_cast<const float*>(args.parts) + offset, scale,
                args.cols, residual);
    } else {
      AddScaled(static_cast<const BFloat16*>(args.parts) + offset, scale,
                args.cols, residual);
    }
  }
}

}  // namespace

void ResidualNorm(const ResidualNormArgs& args, ThreadPool* pool) {
  if (args.sum_of_squares != nullptr) {
    RING_CHECK_GT(args.group_width, 0);
    RING_CHECK_EQ(args.num_parts % args.parts_per_group, 0);
  }
  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> normed(args.norm_weight != nullptr ? args.cols : 0);
    for (int64_t row = begin; row < end; ++row) {
      float* const residual = args.residual + row * args.cols;
      AddParts(args, row, residual);
      if (args.norm_weight == nullptr) continue;
      const float scale =
          InverseRms(SumOfSquares(residual, args.cols), args.cols, args.eps);
      for (int64_t i = 0; i < args.cols; ++i) {
        normed[i] = residual[i] * scale * args.norm_weight[i];
      }
      StoreRow(normed.data(), args.cols, args.normed_dtype, row * args.cols,
               args.normed);
    }
  });
}

}  // namespace ring::cpu
