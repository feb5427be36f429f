// CPU = CUDA for y = x W^T: every pair of types, streaming and GEMM.
#include "kernels/linear/linear.h"

#include <tuple>

#include "tests/kernels/cuda/block_weights.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

using Types = std::tuple<DType, DType, DType>;  // weight, x, y
class LinearCudaTest : public testing::TestWithParam<Types> {
 protected:
  void Compare(int64_t rows, int64_t decode_rows,
               const TestWeight::Shape& shape) {
    const auto [w_dtype, x_dtype, y_dtype] = GetParam();
    const TestWeight weight(w_dtype, shape, 5);
    const TestRows x(x_dtype, rows, shape.cols, 7);
    SCOPED_TRACE(testing::Message() << rows << " rows, " << decode_rows
                                    << " decode, " << shape.rows << " x "
                                    << shape.cols << " left " << shape.left);
    ExpectSame(
        [&, x_dtype = x_dtype, y_dtype = y_dtype](DeviceArena& arena) {
          LinearArgs args;
          args.x = arena.Put(x, rows, shape.cols, x_dtype);
          args.x_dtype = x_dtype;
          args.rows = rows;
          args.decode_rows = decode_rows;
          args.weight = arena.Put(weight);
          args.y = arena.MakeBytes(rows * shape.rows * SizeOf(y_dtype));
          args.y_dtype = y_dtype;
          arena.backend().Linear(args);
          return arena.GetFloats(args.y, rows * shape.rows, y_dtype);
        },
        Tolerance(y_dtype));
  }
};

TEST_P(LinearCudaTest, AgreesOnSmallAndOddSizes) {
  for (const TestWeight::Shape& shape : {TestWeight::Shape{0, 64},
                                         {1, 1},
                                         {7, 33, 5, 3, 2},
                                         {65, 200, 8, 0, 1},
                                         {130, 384, 128, 128, 1},
                                         {33, 256, 64, 64}}) {
    Compare(0, 0, shape);
    Compare(1, 1, shape);
    Compare(3, 3, shape);
    Compare(9, 4, shape);
    Compare(70, 0, shape);
  }
}

TEST_P(LinearCudaTest, AgreesOnModelSizes) {
  Compare(5, 5, {768, 128});
  Compare(1, 1, {1536, 4096});
  Compare(8, 8, {512, 4096});
  Compare(16, 16, {256, 1024});
  Compare(40, 40, {256, 4096});
  Compare(9, 9, {272, 9216});
  Compare(256, 256, {48, 512});
  Compare(100, 2, {512, 1024});
}

INSTANTIATE_TEST_SUITE_P(
    All, LinearCudaTest,
    testing::Combine(testing::Values(DType::kFloat32, DType::kBFloat16,
                                     DType::kFloat8E4M3),
                     testing::Values(DType::kFloat32, DType::kBFloat16),
                     testing::Values(DType::kFloat32, DType::kBFloat16)),
    [](const auto& info) {
      return std::string(Name(std::get<0>(info.param))) + "_" +
             Name(std::get<1>(info.param)) + "_" +
             Name(std::get<2>(info.param));
    });

// Prompt rows of bf16 times a large e4m3 matrix, against double arithmetic on
// the same quantised numbers. The tensor cores keep sums of 128 products to
// about 14 bits; bf16 activations would be 3e-2 away.
TEST(LinearCudaPromptTest, QuantisesRowsForLargeBlockFp8Matrices) {
  struct Size {
    int64_t rows, decode_rows, out, in;
  };
  for (const Size& size : {Size{1, 0, 512, 512},
                           {65, 0, 640, 512},
                           {131, 2, 384, 1024},
                           {300, 0, 1536, 640},
                           {130, 0, 512, 4096}}) {
    std::vector<char> memory;
    const BlockWeight weight(DType::kFloat8E4M3, size.out, size.in, 5, &memory);
    const TestRows x(DType::kBFloat16, size.rows, size.in, 7);
    std::vector<std::vector<double>> quantised;
    for (int64_t i = size.decode_rows; i < size.rows; ++i) {
      std::vector<float> row(size.in);
      for (int64_t j = 0; j < size.in; ++j) {
        row[j] = static_cast<float>(x.At(i, j));
      }
      quantised.push_back(QuantisedRow(row.data(), size.in));
    }
    std::vector<double> expected;
    for (const auto& row : weight.Multiply(memory, quantised)) {
      expected.insert(expected.end(), row.begin(), row.end());
    }
    for (DType y_dtype : {DType::kFloat32, DType::kBFloat16}) {
      SCOPED_TRACE(testing::Message()
                   << size.rows << " rows, " << size.out << " x " << size.in
                   << " " << Name(y_dtype));
      DeviceArena arena(TestGpu());
      LinearArgs args;
      args.x = arena.Put(x, size.rows, size.in, DType::kBFloat16);
      args.x_dtype = DType::kBFloat16;
      args.rows = size.rows;
      args.decode_rows = size.decode_rows;
      args.weight = weight.At(arena.Put(memory));
      args.y = arena.MakeBytes(size.rows * size.out * SizeOf(y_dtype));
      args.y_dtype = y_dtype;
      arena.backend().Linear(args);
      const auto y = arena.GetFloats(args.y, size.rows * size.out, y_dtype);
      const std::vector<float> actual(y.begin() + size.decode_rows * size.out,
                                      y.end());
      ASSERT_EQ(actual.size(), expected.size());
      EXPECT_LE(RelativeL2(actual, expected, expected.size()),
                y_dtype == DType::kFloat32 ? 5e-4 : 4e-3);
    }
  }
}

// Two matrices in one call give what two calls give, in steps of any size.
TEST_P(LinearCudaTest, TwoMatricesAgree) {
  const auto [w_dtype, x_dtype, y_dtype] = GetParam();
  struct Size {
    int64_t rows, decode_rows, out, also, in;
  };
  for (const Size& size : {Size{1, 1, 48, 16, 256},
                           {3, 3, 33, 7, 384},
                           {8, 8, 9000, 40, 128},
                           {20, 20, 130, 70, 512},
                           {0, 0, 16, 16, 128},
                           {5, 5, 0, 16, 128},
                           {150, 100, 200, 72, 256}}) {
    const TestWeight weight(w_dtype, {size.out, size.in}, 5);
    const TestWeight also(w_dtype, {size.also, size.in}, 6);
    const TestRows x(x_dtype, size.rows, size.in, 7);
    SCOPED_TRACE(testing::Message()
                 << size.rows << " rows, " << size.out << " and " << size.also);
    ExpectSame(
        [&, x_dtype = x_dtype, y_dtype = y_dtype](DeviceArena& arena) {
          LinearArgs args;
          args.x = arena.Put(x, size.rows, size.in, x_dtype);
          args.x_dtype = x_dtype;
          args.rows = size.rows;
          args.decode_rows = size.decode_rows;
          args.weight = arena.Put(weight);
          args.also = arena.Put(also);
          args.y = arena.MakeBytes(size.rows * size.out * SizeOf(y_dtype));
          args.also_y =
              arena.MakeBytes(size.rows * size.also * SizeOf(y_dtype));
          args.y_dtype = y_dtype;
          arena.backend().Linear(args);
          std::vector<float> all =
              arena.GetFloats(args.y, size.rows * size.out, y_dtype);
          const std::vector<float> second =
              arena.GetFloats(args.also_y, size.rows * size.also, y_dtype);
          all.insert(all.end(), second.begin(), second.end());
          return all;
        },
        Tolerance(y_dtype));
  }
}

// Block-FP8 weights and decode rows of all the sizes that are told apart, with
// outputs and columns that do not fill the tiles.
TEST(LinearCudaWideTest, AgreesForAnyNumberOfDecodeRows) {
  for (const TestWeight::Shape& shape : {TestWeight::Shape{72, 128},
                                         {300, 384, 0, 0, 1},
                                         {4096, 256},
                                         {8500, 256},
                                         {200, 4096}}) {
    const TestWeight weight(DType::kFloat8E4M3, shape, 5);
    for (int64_t rows : {9, 16, 17, 33, 64, 65, 100, 128, 129, 255, 256, 300}) {
      const TestRows x(DType::kBFloat16, rows, shape.cols, 7);
      SCOPED_TRACE(testing::Message()
                   << rows << " rows, " << shape.rows << " x " << shape.cols);
      ExpectSame(
          [&](DeviceArena& arena) {
            LinearArgs args;
            args.x = arena.Put(x, rows, shape.cols, DType::kBFloat16);
            args.x_dtype = DType::kBFloat16;
            args.rows = args.decode_rows = rows;
            args.weight = arena.Put(weight);
            args.y = arena.Make<float>(rows * shape.rows);
            arena.backend().Linear(args);
            return arena.Get(static_cast<const float*>(args.y),
                             rows * shape.rows);
          },
          Tolerance(DType::kFloat32));
    }
  }
}

// A row's bits do not depend on the rows beside it, nor on how many they are
// while those pass the same kernel.
TEST(LinearCudaBitsTest, RowsAloneEqualRowsTogether) {
  constexpr int64_t kRows = 256;
  constexpr int64_t kOut = 200;
  for (DType dtype : {DType::kFloat8E4M3, DType::kBFloat16}) {
    for (int64_t cols : {64, 512, 1152, 4096}) {
      const TestWeight weight(dtype, {kOut, cols}, 5);
      const TestRows x(DType::kBFloat16, kRows, cols, 7);
      DeviceArena arena(TestGpu());
      LinearArgs args;
      args.x = arena.Put(x, kRows, cols, DType::kBFloat16);
      args.x_dtype = DType::kBFloat16;
      args.weight = arena.Put(weight);
      args.y = arena.Make<float>(kRows * kOut);
      const auto run = [&](int64_t rows) {
        args.rows = args.decode_rows = rows;
        arena.backend().Linear(args);
        return arena.Get(static_cast<float*>(args.y), rows * kOut);
      };
      const auto compare = [&](const std::vector<float>& together,
                               std::initializer_list<int64_t> parts) {
        for (int64_t rows : parts) {
          EXPECT_EQ(run(rows),
                    std::vector<float>(together.begin(),
                                       together.begin() + rows * kOut))
              << rows << " rows of " << cols;
        }
      };
      const bool wide = dtype == DType::kFloat8E4M3 && cols % kScaleBlock == 0;
      if (wide) compare(run(kRows), {17, 31, 64, 65, 130});
      const int64_t few = wide ? 16 : 32;
      const std::vector<float> together = run(few);
      compare(together, {1, few / 2, few - 1});
      for (int64_t row = 0; row < few; ++row) {
        ASSERT_EQ(run(1),
                  std::vector<float>(together.begin() + row * kOut,
                                     together.begin() + (row + 1) * kOut))
            << "row " << row << " of " << cols;
        args.x = static_cast<const BFloat16*>(args.x) + cols;
      }
    }
  }
}

// All codes of e4m3 but NaN, subnormals too, against activations of extreme
// sizes; one column a weight row, so that every product shows alone.
TEST(LinearCudaBitsTest, DecodesEveryFp8CodeExactly) {
  constexpr int64_t kCols = 256;
  std::vector<Float8E4M3> codes(kCols * kCols);
  std::vector<float> values;
  for (int64_t i = 0; i < kCols; ++i) {
    Float8E4M3 code;
    code.bits = static_cast<uint8_t>(i);
    if ((i & 0x7f) == 0x7f) code.bits = 0;
    codes[i * kCols + i] = code;
    values.push_back(ToFloat(code));
  }
  DeviceArena arena(TestGpu());
  constexpr int64_t kRows = 20;
  for (float x : {1.0f, -0x1.8p-40f, 0x1.02p+50f}) {
    for (int64_t rows : {int64_t{1}, kRows}) {
      LinearArgs args;
      args.x = arena.Put(std::vector<BFloat16>(kRows * kCols, ToBFloat16(x)));
      args.x_dtype = DType::kBFloat16;
      args.rows = args.decode_rows = rows;
      args.weight.data = arena.Put(codes);
      args.weight.dtype = DType::kFloat8E4M3;
      args.weight.rows = args.weight.cols = args.weight.row_stride = kCols;
      args.weight.scale_cols = 2;
      args.weight.scales = arena.Put(std::vector<float>(2, 0.75f));
      args.weight.row_scale = arena.Put(std::vector<int32_t>(kCols, 0));
      args.y = arena.Make<float>(rows * kCols);
      arena.backend().Linear(args);
      const auto y = arena.Get(static_cast<float*>(args.y), rows * kCols);
      for (int64_t i = 0; i < rows * kCols; ++i) {
        EXPECT_EQ(y[i], 0.75f * values[i % kCols] * x)
            << "code " << i % kCols << " row " << i / kCols;
      }
    }
  }
}

// A bucket's step is recorded at its first use and replayed afterwards.
TEST(CudaBackendTest, ReplaysAStepOnNewInputs) {
  constexpr int64_t kCols = 128;
  const TestWeight weight(DType::kBFloat16, {32, kCols}, 5);
  const TestRows first(DType::kBFloat16, 1, kCols, 1);
  const TestRows second(DType::kBFloat16, 1, kCols, 2);
  DeviceArena arena(TestGpu());
  Backend& gpu = arena.backend();
  void* const x = arena.Put(first, 1, kCols, DType::kBFloat16);
  LinearArgs args;
  args.x = x;
  args.x_dtype = DType::kBFloat16;
  args.weight = arena.Put(weight);
  args.rows = args.decode_rows = 1;
  args.y = arena.Make<float>(32);
  int calls = 0;
  const auto step = [&] {
    ++calls;
    gpu.WaitFor(Queue::kSide, Queue::kMain);
    gpu.Use(Queue::kSide);
    gpu.Linear(args);
    gpu.Use(Queue::kMain);
    gpu.WaitFor(Queue::kMain, Queue::kSide);
  };
  gpu.RunStep(/*bucket=*/1, step);
  EXPECT_EQ(calls, 1);
  const auto y_first = arena.Get(static_cast<float*>(args.y), 32);
  gpu.CopyToDevice(x, second.data(), kCols * 2);
  gpu.RunStep(/*bucket=*/1, step);
  EXPECT_EQ(calls, 1);
  const auto replayed = arena.Get(static_cast<float*>(args.y), 32);
  gpu.Linear(args);
  EXPECT_EQ(replayed, arena.Get(static_cast<float*>(args.y), 32));
  EXPECT_NE(replayed, y_first);
}

TEST(CudaBackendTest, NamesWhatIsMissing) {
  DeviceArena arena(TestGpu());
  const auto buffer = arena.backend().Allocate(int64_t{1} << 50);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  // What failed does not make later calls fail.
  EXPECT_TRUE(arena.backend().Allocate(256).ok());
}

}  // namespace
}  // namespace ring
