// Every build of the vector kernels that this processor runs, against double.
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/simd/isa.h"
#include "kernels/simd/small_gemm.h"
#include "kernels/simd/vec.h"
#include "tests/kernels/tensor_support.h"

namespace ring::simd {
namespace {

// Those whose kernels differ: bf16 pairs are no concern of these.
std::vector<CpuIsa> Runnable() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= DetectCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

class SmallGemmTest : public testing::TestWithParam<std::tuple<int, int, int>> {
};

TEST_P(SmallGemmTest, MatchesTheDefinition) {
  const auto [m, n, k] = GetParam();
  const int lda = k + 1, ldb = n + 2, ldc = n + 3;
  const std::vector<float> a = RandomFloats(m * lda, 1);
  const std::vector<float> b = RandomFloats(k * ldb, 2);
  const std::vector<float> start = RandomFloats(m * ldc, 3);
  for (CpuIsa isa : Runnable()) {
    for (bool accumulate : {false, true}) {
      std::vector<float> c = start;
      SmallGemm(isa, {a.data(), lda, b.data(), ldb, c.data(), ldc, m, n, k,
                      accumulate});
      for (int i = 0; i < m; ++i) {
        for (int j = 0; j < ldc; ++j) {
          double expected = start[i * ldc + j];
          if (j < n) {
            if (!accumulate) expected = 0;
            for (int x = 0; x < k; ++x) {
              expected += double{a[i * lda + x]} * b[x * ldb + j];
            }
          }
          // Partial sums grow like sqrt(k) and their roundings add up like
          // sqrt(k): a few eps * k. Untouched outside the n columns.
          const double tolerance = j < n ? 3e-7 * (k + 1) : 0;
          ASSERT_NEAR(c[i * ldc + j], expected, tolerance)
              << Name(isa) << " at " << i << ", " << j;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SmallGemmTest,
    testing::Values(std::make_tuple(0, 4, 4), std::make_tuple(1, 1, 1),
                    std::make_tuple(3, 0, 2), std::make_tuple(2, 5, 0),
                    std::make_tuple(7, 37, 13), std::make_tuple(9, 16, 64),
                    std::make_tuple(13, 63, 5), std::make_tuple(64, 64, 128),
                    std::make_tuple(64, 128, 64)));

struct ExpKernel {
  template <int kLanes>
  RING_INLINE static void Run(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) {
      FloatVec<kLanes> v;
      Load<kLanes>(x + i, v);
      Exp<kLanes>(v);
      Store<kLanes>(v, x + i);
    }
  }
};

TEST(ExpTest, IsWithinTwoUnitsInTheLastPlace) {
  for (CpuIsa isa : Runnable()) {
    std::vector<float> x;
    for (int i = 0; i < 16 * 4000; ++i) x.push_back(-86.9f + i * 0.0027f);
    std::vector<float> y = x;
    DispatchTo<ExpKernel>(isa, y.data(), static_cast<int64_t>(y.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = std::exp(double{x[i]});
      ASSERT_NEAR(y[i] / expected, 1, 2.4e-7) << x[i];
    }
  }
}

TEST(ExpTest, IsZeroFarBelow) {
  for (CpuIsa isa : Runnable()) {
    std::vector<float> x(16, -1e30f);
    x[1] = -std::numeric_limits<float>::infinity();
    DispatchTo<ExpKernel>(isa, x.data(), int64_t{16});
    EXPECT_THAT(x, testing::Each(0.0f));
  }
}

TEST(ExpTest, SaturatesFarAboveAndKeepsNaN) {
  for (CpuIsa isa : Runnable()) {
    std::vector<float> x(16, std::numeric_limits<float>::quiet_NaN());
    x[2] = 1000;
    x[3] = std::numeric_limits<float>::infinity();
    DispatchTo<ExpKernel>(isa, x.data(), int64_t{16});
    for (int i = 0; i < 16; ++i) {
      if (i == 2 || i == 3) {
        EXPECT_NEAR(x[i] / std::exp(88.0), 1, 2.4e-7);
      } else {
        EXPECT_TRUE(std::isnan(x[i]));
      }
    }
  }
}

struct LoadSumKernel {
  template <int kLanes>
  RING_INLINE static void Run(const BFloat16* x, float* sum) {
    FloatVec<kLanes> v;
    Load<kLanes>(x, v);
    *sum = Sum<kLanes>(v);
  }
};

TEST(VecTest, LoadsBFloat16AndSumsAllLanes) {
  std::vector<BFloat16> x;
  for (int i = 0; i < 16; ++i) x.push_back(ToBFloat16(i - 3.5f));
  for (CpuIsa isa : Runnable()) {
    const int lanes = isa == CpuIsa::kPortable ? 4
                      : isa == CpuIsa::kAvx2   ? 8
                                               : 16;
    float sum = 0;
    DispatchTo<LoadSumKernel>(isa, static_cast<const BFloat16*>(x.data()),
                              &sum);
    EXPECT_EQ(sum, lanes * (lanes - 1) / 2 - 3.5f * lanes);
  }
}

}  // namespace
}  // namespace ring::simd
