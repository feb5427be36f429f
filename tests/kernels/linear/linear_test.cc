#include "kernels/linear/linear.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "kernels/simd/isa.h"
#include "tests/kernels/linear/test_matrix.h"

namespace ring {
namespace {

// Runs Linear and widens what it wrote.
std::vector<float> RunLinear(LinearArgs args, int threads) {
  ThreadPool pool(threads);
  std::vector<float> wide(args.rows * args.weight.rows, -1.0f);
  std::vector<BFloat16> narrow(wide.size());
  const bool is_wide = args.y_dtype == DType::kFloat32;
  args.y = is_wide ? static_cast<void*>(wide.data()) : narrow.data();
  cpu::Linear(args, &pool);
  for (size_t i = 0; !is_wide && i < wide.size(); ++i) {
    wide[i] = ToFloat(narrow[i]);
  }
  return wide;
}

struct Types {
  DType x;
  DType w;
  DType y;
};

std::vector<Types> AllTypes() {
  std::vector<Types> all;
  for (DType x : {DType::kFloat32, DType::kBFloat16}) {
    for (DType w : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3}) {
      for (DType y : {DType::kFloat32, DType::kBFloat16}) {
        all.push_back({x, w, y});
      }
    }
  }
  return all;
}

class LinearTest : public testing::TestWithParam<Types> {
 protected:
  void ExpectExact(int64_t rows, int64_t decode_rows,
                   const TestWeight::Shape& shape) {
    const Types& types = GetParam();
    const TestRows x(types.x, rows, shape.cols, 1);
    const TestWeight w(types.w, shape, 2);
    LinearArgs args;
    args.x = x.data();
    args.x_dtype = types.x;
    args.rows = rows;
    args.decode_rows = decode_rows;
    args.weight = w.view();
    args.y_dtype = types.y;
    const std::vector<float> y = RunLinear(args, 2);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t n = 0; n < shape.rows; ++n) {
        ExactDot exact = Dot(x, i, w, n);
        if (types.y == DType::kBFloat16) {
          // Half a bf16 ulp is 2^-8 of the value at most.
          exact.tolerance += 0x1p-8 * std::abs(exact.value);
        }
        ASSERT_NEAR(y[i * shape.rows + n], exact.value, exact.tolerance)
            << "row " << i << " of " << rows << ", output " << n << " of "
            << shape.rows << ", cols " << shape.cols;
      }
    }
  }
};

TEST_P(LinearTest, EqualsDouble) {
  ExpectExact(1, 1, {1, 1});
  ExpectExact(5, 2, {99, 77});
  ExpectExact(3, 3, {384, 128});
  ExpectExact(7, 0, {128, 384});
  ExpectExact(2, 1, {50, 2048});
  ExpectExact(2, 2, {2048, 20});
}

TEST_P(LinearTest, EqualsDoubleBeyondOneBlockOfRows) {
  ExpectExact(300, 4, {30, 40});
}

TEST_P(LinearTest, BitsDoNotDependOnThreads) {
  const Types& types = GetParam();
  const TestWeight w(types.w, {400, 640}, 3);
  const TestRows x(types.x, 9, 640, 4);
  LinearArgs args;
  args.x = x.data();
  args.x_dtype = types.x;
  args.rows = 9;
  args.decode_rows = 9;
  args.weight = w.view();
  args.y_dtype = types.y;
  const std::vector<float> one = RunLinear(args, 1);
  EXPECT_EQ(one, RunLinear(args, 2));
  EXPECT_EQ(one, RunLinear(args, 3));
}

TEST_P(LinearTest, BitsOfADecodeRowDoNotDependOnTheOthers) {
  const Types& types = GetParam();
  const TestWeight w(types.w, {70, 300}, 5);
  const TestRows x(types.x, 40, 300, 6);
  LinearArgs args;
  args.x = x.data();
  args.x_dtype = types.x;
  args.rows = 1;
  args.decode_rows = 1;
  args.weight = w.view();
  args.y_dtype = types.y;
  const std::vector<float> alone = RunLinear(args, 2);
  for (int64_t rows = 2; rows <= 40; ++rows) {
    args.rows = rows;
    args.decode_rows = rows / 2;
    const std::vector<float> y = RunLinear(args, 2);
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), y.begin()))
        << rows << " rows";
  }
}

TEST_P(LinearTest, MultipliesWithTwoMatrices) {
  const Types& types = GetParam();
  const TestWeight w(types.w, {70, 300}, 5);
  const TestWeight also(types.w, {33, 300}, 6);
  const TestRows x(types.x, 9, 300, 6);
  LinearArgs args;
  args.x = x.data();
  args.x_dtype = types.x;
  args.rows = 9;
  args.decode_rows = 4;
  args.weight = w.view();
  args.y_dtype = types.y;
  const std::vector<float> first = RunLinear(args, 2);
  args.weight = also.view();
  const std::vector<float> second = RunLinear(args, 2);
  std::vector<unsigned char> also_y(9 * 33 * SizeOf(types.y));
  args.weight = w.view();
  args.also = also.view();
  args.also_y = also_y.data();
  EXPECT_EQ(RunLinear(args, 2), first);
  for (size_t i = 0; i < second.size(); ++i) {
    const float y =
        types.y == DType::kFloat32
            ? reinterpret_cast<const float*>(also_y.data())[i]
            : ToFloat(reinterpret_cast<const BFloat16*>(also_y.data())[i]);
    ASSERT_EQ(y, second[i]) << i;
  }
}

TEST_P(LinearTest, HandlesEmptyShapes) {
  ExpectExact(0, 0, {4, 4});
  ExpectExact(2, 2, {0, 4});
  ExpectExact(2, 1, {4, 0});  // an empty sum is zero
}

INSTANTIATE_TEST_SUITE_P(All, LinearTest, testing::ValuesIn(AllTypes()),
                         [](const auto& info) {
                           return std::string("x_") + Name(info.param.x) +
                                  "_w_" + Name(info.param.w) + "_y_" +
                                  Name(info.param.y);
                         });

TEST(CpuIsaTest, ActiveOneIsNoHigherThanTheProcessor) {
  EXPECT_LE(ActiveCpuIsa(), DetectCpuIsa());
  EXPECT_STREQ(cpu::LinearIsaName(), Name(ActiveCpuIsa()));
}

}  // namespace
}  // namespace ring
