#include "kernels/norm/residual_norm.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/tensor_support.h"

namespace ring {
namespace {

struct Expected {
  std::vector<double> residual;
  std::vector<double> normed;
};

// The definition in double. scales: one a part and row, [num_parts, rows].
Expected Reference(const std::vector<float>& residual, const Tensor& parts,
                   int num_parts, int64_t part_stride, int rows, int cols,
                   const std::vector<double>& scales,
                   const std::vector<float>& weight, float eps) {
  Expected e;
  e.residual.assign(residual.begin(), residual.end());
  for (int r = 0; r < rows; ++r) {
    double squares = 0;
    for (int c = 0; c < cols; ++c) {
      double& x = e.residual[r * cols + c];
      for (int p = 0; p < num_parts; ++p) {
        x += scales[p * rows + r] * parts[p * part_stride + r * cols + c];
      }
      squares += x * x;
    }
    for (int c = 0; c < cols; ++c) {
      e.normed.push_back(e.residual[r * cols + c] /
                         std::sqrt(squares / cols + eps) * weight[c]);
    }
  }
  return e;
}

struct Case {
  int rows, cols, num_parts;
  DType parts_dtype, normed_dtype;
};

class ResidualNormTest : public testing::TestWithParam<Case> {};

TEST_P(ResidualNormTest, FollowsTheDefinition) {
  const Case& c = GetParam();
  const int64_t stride = c.rows * c.cols + 3;  // parts need not be dense
  std::vector<float> residual = RandomFloats(c.rows * c.cols, 1);
  Tensor parts(c.parts_dtype, RandomFloats(c.num_parts * stride, 2));
  const std::vector<float> weight = RandomFloats(c.cols, 3);
  Tensor normed(c.normed_dtype, std::vector<float>(c.rows * c.cols));
  const Expected e =
      Reference(residual, parts, c.num_parts, stride, c.rows, c.cols,
                std::vector<double>(c.num_parts * c.rows, 1.0), weight, 1e-6f);

  ResidualNormArgs args;
  args.parts = parts.data();
  args.parts_dtype = c.parts_dtype;
  args.num_parts = c.num_parts;
  args.part_stride = stride;
  args.rows = c.rows;
  args.cols = c.cols;
  args.residual = residual.data();
  args.norm_weight = weight.data();
  args.eps = 1e-6f;
  args.normed = normed.data();
  args.normed_dtype = c.normed_dtype;
  ThreadPool pool(2);
  cpu::ResidualNorm(args, &pool);

  EXPECT_LT(RelativeL2(residual, e.residual, residual.size()), 1e-6);
  // bf16 rounds to 2^-9.
  const double tolerance = c.normed_dtype == DType::kFloat32 ? 1e-6 : 3e-3;
  EXPECT_LT(RelativeL2(normed, e.normed, e.normed.size()), tolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ResidualNormTest,
    testing::Values(Case{0, 16, 1, DType::kFloat32, DType::kFloat32},
                    Case{1, 1, 1, DType::kFloat32, DType::kFloat32},
                    Case{3, 17, 0, DType::kFloat32, DType::kFloat32},
                    Case{9, 128, 4, DType::kBFloat16, DType::kFloat32},
                    Case{5, 33, 2, DType::kFloat32, DType::kBFloat16},
                    Case{2, 4096, 1, DType::kFloat32, DType::kFloat32}));

TEST(ResidualNormGroupTest, DividesEachPartByTheRmsOfItsGroup) {
  constexpr int kRows = 5, kCols = 24, kParts = 4, kGroupWidth = 64;
  std::vector<float> residual = RandomFloats(kRows * kCols, 1);
  Tensor parts(DType::kFloat32, RandomFloats(kParts * kRows * kCols, 2));
  std::vector<float> squares = RandomFloats(kParts * kRows, 3);
  for (float& x : squares) x = 50 * x * x;
  std::vector<double> scales;
  for (int p = 0; p < kParts; ++p) {
    for (int r = 0; r < kRows; ++r) {
      const int first = p / 2 * 2;  // two parts a group
      const double sum =
          double{squares[first * kRows + r]} + squares[(first + 1) * kRows + r];
      scales.push_back(1 / std::sqrt(sum / kGroupWidth + 1e-5));
    }
  }
  const Expected e = Reference(residual, parts, kParts, kRows * kCols, kRows,
                               kCols, scales, std::vector<float>(kCols), 0);
  ResidualNormArgs args;
  args.parts = parts.data();
  args.num_parts = kParts;
  args.part_stride = kRows * kCols;
  args.rows = kRows;
  args.cols = kCols;
  args.residual = residual.data();
  args.sum_of_squares = squares.data();
  args.parts_per_group = 2;
  args.group_width = kGroupWidth;
  args.group_eps = 1e-5f;
  ThreadPool pool(1);
  cpu::ResidualNorm(args, &pool);
  EXPECT_LT(RelativeL2(residual, e.residual, residual.size()), 1e-6);
}

}  // namespace
}  // namespace ring
