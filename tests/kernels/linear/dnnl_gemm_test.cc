#include "kernels/linear/dnnl_gemm.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/linear/test_matrix.h"

namespace ring {
namespace {

class DnnlGemmTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (!DnnlGemmSupports(GetParam())) {
      GTEST_SKIP() << "no vector code for " << Name(GetParam());
    }
  }

  std::vector<float> Run(const TestRows& x, int64_t rows, const TestWeight& w,
                         int threads) {
    ThreadPool pool(threads);
    std::vector<float> y(rows * w.view().rows, -1.0f);
    DnnlGemmArgs args;
    args.x = x.data();
    args.rows = rows;
    args.weight = w.view();
    args.y = y.data();
    EXPECT_TRUE(DnnlGemm(args, &pool));
    return y;
  }
};

TEST_P(DnnlGemmTest, EqualsDouble) {
  // Pieces of rows that overlap, and weights inside a larger tensor.
  for (int64_t rows : {64, 65, 200}) {
    const TestWeight w(GetParam(), {70, 100, 8, 4, 1}, 1);
    const TestRows x(GetParam(), rows, 100, 2);
    const std::vector<float> y = Run(x, rows, w, 2);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t n = 0; n < 70; ++n) {
        const ExactDot exact = Dot(x, i, w, n);
        ASSERT_NEAR(y[i * 70 + n], exact.value, exact.tolerance)
            << "row " << i << " of " << rows << ", output " << n;
      }
    }
  }
}

TEST_P(DnnlGemmTest, BitsDoNotDependOnThreads) {
  const TestWeight w(GetParam(), {300, 128}, 3);
  const TestRows x(GetParam(), 130, 128, 4);
  EXPECT_EQ(Run(x, 130, w, 1), Run(x, 130, w, 2));
}

INSTANTIATE_TEST_SUITE_P(All, DnnlGemmTest,
                         testing::Values(DType::kFloat32, DType::kBFloat16),
                         [](const auto& info) { return Name(info.param); });

TEST(DnnlGemmSupportsTest, NeverFp8) {
  EXPECT_FALSE(DnnlGemmSupports(DType::kFloat8E4M3));
}

}  // namespace
}  // namespace ring
