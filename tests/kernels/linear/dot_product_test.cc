// The dot kernels of every instruction set that this processor has, against
// sums in double.
#include "kernels/linear/dot_product.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/linear/test_matrix.h"

namespace ring {
namespace {

struct Case {
  CpuIsa isa;
  DType x_dtype;
  DType w_dtype;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (CpuIsa isa : kAllCpuIsas) {
    if (isa > DetectCpuIsa()) break;
    for (DType x : {DType::kFloat32, DType::kBFloat16}) {
      for (DType w : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3}) {
        cases.push_back({isa, x, w});
      }
    }
  }
  return cases;
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return std::string(Name(info.param.isa)) + "_x_" + Name(info.param.x_dtype) +
         "_w_" + Name(info.param.w_dtype);
}

// out [x rows in `which`, weight rows]
std::vector<float> Multiply(const Case& c, const TestRows& x,
                            const std::vector<int32_t>& which,
                            const WeightMatrix& w) {
  const DotProduct product = MakeDotProduct(c.x_dtype, w, c.isa);
  const int64_t rows = static_cast<int64_t>(which.size());
  std::vector<int32_t> packed(PackedRows(product, rows) *
                              product.layout.packed_words);
  PackRows(product, {x.data(), c.x_dtype, which.data()}, rows, packed.data(),
           nullptr);
  std::vector<float> out(rows * w.rows, -1.0f);
  MultiplyRows(product, packed.data(), rows, w, 0, w.rows, out.data(), w.rows);
  return out;
}

std::vector<int32_t> FirstRows(int64_t rows) {
  std::vector<int32_t> which;
  for (int64_t i = 0; i < rows; ++i) which.push_back(static_cast<int32_t>(i));
  return which;
}

class DotProductTest : public testing::TestWithParam<Case> {
 protected:
  void ExpectExact(int64_t rows, const TestWeight::Shape& shape) {
    const Case& c = GetParam();
    const TestRows x(c.x_dtype, rows, shape.cols, 1);
    const TestWeight w(c.w_dtype, shape, 2);
    const std::vector<float> out = Multiply(c, x, FirstRows(rows), w.view());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t n = 0; n < shape.rows; ++n) {
        const ExactDot exact = Dot(x, i, w, n);
        ASSERT_NEAR(out[i * shape.rows + n], exact.value, exact.tolerance)
            << "row " << i << " of " << rows << ", output " << n << " of "
            << shape.rows << ", cols " << shape.cols << ", left " << shape.left;
      }
    }
  }
};

TEST_P(DotProductTest, EqualsDoubleForAnyNumberOfColumns) {
  for (int64_t cols : {0, 1, 7, 16, 31, 64, 127, 128, 129, 384, 1000, 1024,
                       1029, 2048, 2300}) {
    ExpectExact(3, {5, cols});
  }
}

TEST_P(DotProductTest, EqualsDoubleForAnyNumberOfRowsAndOutputs) {
  for (int64_t rows : {1, 2, 3, 4, 5, 7, 16, 17, 33}) {
    for (int64_t outputs : {1, 2, 3, 8, 23, 25, 49}) {
      ExpectExact(rows, {outputs, 130});
    }
  }
}

TEST_P(DotProductTest, ReadsAPartOfALargerTensor) {
  for (int64_t left : {1, 64, 100, 127, 128, 200, 300}) {
    for (int64_t cols : {20, 128, 333, 1100}) {
      ExpectExact(5, {9, cols, left, 3, 2});
    }
  }
}

// More rows, outputs and columns than a panel takes in one go.
TEST_P(DotProductTest, EqualsDoubleWhereThePanelIsSplit) {
  ExpectExact(6, {121, 2048});
  ExpectExact(290, {35, 1100});
}

TEST_P(DotProductTest, BitsOfARowDoNotDependOnItsCompany) {
  const Case& c = GetParam();
  constexpr int64_t kRows = 17;
  const TestWeight w(c.w_dtype, {100, 1111, 77}, 3);
  const TestRows x(c.x_dtype, kRows, w.view().cols, 4);
  std::vector<std::vector<float>> alone;
  for (int64_t i = 0; i < kRows; ++i) {
    alone.push_back(Multiply(c, x, {static_cast<int32_t>(i)}, w.view()));
  }
  for (int64_t rows = 1; rows <= kRows; ++rows) {
    // The rows that end with the last one, in reverse order.
    std::vector<int32_t> which;
    for (int64_t i = 0; i < rows; ++i)
      which.push_back(static_cast<int32_t>(kRows - 1 - i));
    const std::vector<float> out = Multiply(c, x, which, w.view());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t n = 0; n < w.view().rows; ++n) {
        ASSERT_EQ(out[i * w.view().rows + n], alone[which[i]][n])
            << "row " << which[i] << " among " << rows << ", output " << n;
      }
    }
  }
}

TEST_P(DotProductTest, BitsOfAnOutputDoNotDependOnTheRange) {
  const Case& c = GetParam();
  const TestWeight w(c.w_dtype, {50, 600}, 5);
  const TestRows x(c.x_dtype, 5, 600, 6);
  const std::vector<float> whole = Multiply(c, x, FirstRows(5), w.view());
  for (int64_t n = 0; n < 50; ++n) {
    const std::vector<float> one =
        Multiply(c, x, FirstRows(5), Rows(w.view(), n, n + 1));
    for (int64_t i = 0; i < 5; ++i) ASSERT_EQ(one[i], whole[i * 50 + n]);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DotProductTest, testing::ValuesIn(AllCases()),
                         CaseName);

// Every FP8 code against every part of a word, alone in its row.
TEST(Fp8WeightsTest, EveryCodeIsDecodedExactly) {
  for (CpuIsa isa : kAllCpuIsas) {
    if (isa > DetectCpuIsa()) break;
    constexpr int64_t kCols = 67;
    std::vector<Float8E4M3> codes(256 * kCols);
    const std::vector<int32_t> row_scale(256, 0);
    const float scale = 0.75f;
    WeightMatrix w;
    w.data = codes.data();
    w.dtype = DType::kFloat8E4M3;
    w.rows = 256;
    w.cols = kCols;
    w.row_stride = kCols;
    w.scales = &scale;
    w.row_scale = row_scale.data();
    w.scale_cols = 1;
    const TestRows x(DType::kFloat32, 1, kCols, 7);
    for (int64_t column : {0, 1, 2, 3, 64, 66}) {
      for (int code = 0; code < 256; ++code) {
        for (int64_t j = 0; j < kCols; ++j) codes[code * kCols + j].bits = 0;
        codes[code * kCols + column].bits = static_cast<uint8_t>(code);
      }
      const std::vector<float> out =
          Multiply({isa, DType::kFloat32, DType::kFloat8E4M3}, x, {0}, w);
      for (int code = 0; code < 256; ++code) {
        const float value = ToFloat(Float8E4M3{static_cast<uint8_t>(code)});
        const float expected =
            value * scale * static_cast<float>(x.At(0, column));
        EXPECT_THAT(out[code], testing::NanSensitiveFloatEq(expected))
            << Name(isa) << " code " << code << " column " << column;
      }
    }
  }
}

// Router weights: products of fp32 are never narrowed to bf16.
TEST(F32WeightsTest, KeepsAllBitsOfFp32Factors) {
  for (DType x_dtype : {DType::kFloat32, DType::kBFloat16}) {
    const float weight = 1 + 0x1p-20f;
    WeightMatrix w;
    w.data = &weight;
    w.dtype = DType::kFloat32;
    w.rows = w.cols = w.row_stride = 1;
    const TestRows x(x_dtype, 1, 1, 8);
    const float exact = static_cast<float>(x.At(0, 0) * weight);
    EXPECT_EQ(Multiply({ActiveCpuIsa(), x_dtype, w.dtype}, x, {0}, w)[0],
              exact);
  }
}

}  // namespace
}  // namespace ring
