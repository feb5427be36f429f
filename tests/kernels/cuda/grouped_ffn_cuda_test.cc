// CPU = CUDA for dense and grouped SwiGLU blocks.
#include "kernels/grouped_ffn/grouped_ffn.h"

#include <random>

#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

struct FfnCase {
  DType w_dtype;
  DType x_dtype;
};
class FfnCudaTest : public testing::TestWithParam<FfnCase> {
 protected:
  // The inner activation may round to the other side, as may nothing else.
  double FfnTolerance() const {
    return GetParam().x_dtype == DType::kFloat32 ? 2e-5 : 2e-3;
  }
};

struct HostExpert {
  HostExpert(DType dtype, int64_t hidden, int64_t inter, uint32_t seed)
      : gate(dtype, {inter, hidden}, seed),
        up(dtype, {inter, hidden}, seed + 1),
        down(dtype, {hidden, inter}, seed + 2) {}
  GatedMlpWeights Put(DeviceArena& arena) const {
    return {arena.Put(gate), arena.Put(up), arena.Put(down)};
  }
  TestWeight gate, up, down;
};

// Activations small enough that silu is not saturated.
Tensor SmallRows(DType dtype, int64_t n, uint32_t seed) {
  return Tensor(dtype, RandomFloats(n, seed, 0.05f));
}

TEST_P(FfnCudaTest, DenseAgrees) {
  const auto [w_dtype, x_dtype] = GetParam();
  struct Size {
    int64_t rows, decode_rows, hidden, inter;
  };
  for (const Size& size : {Size{0, 0, 16, 16},
                           {1, 1, 128, 384},
                           {3, 3, 33, 7},
                           {5, 2, 128, 384},
                           {300, 2, 128, 96},
                           {70, 0, 256, 128},
                           {2, 2, 4096, 512}}) {
    for (bool accumulate : {false, true}) {
      const HostExpert mlp(w_dtype, size.hidden, size.inter, 11);
      const Tensor x = SmallRows(x_dtype, size.rows * size.hidden, 3);
      const auto y = RandomFloats(size.rows * size.hidden, 4);
      SCOPED_TRACE(testing::Message() << size.rows << " rows of " << size.hidden
                                      << ", " << size.inter);
      ExpectSame(
          [&, x_dtype = x_dtype](DeviceArena& arena) {
            DenseFfnArgs args;
            args.x = arena.Put(x);
            args.x_dtype = x_dtype;
            args.rows = size.rows;
            args.decode_rows = size.decode_rows;
            args.weights = mlp.Put(arena);
            args.y = arena.Put(y);
            args.accumulate = accumulate;
            args.workspace = arena.MakeBytes(
                DenseFfnWorkspaceBytes(size.rows, size.inter, x_dtype));
            arena.backend().DenseFfn(args);
            return arena.Get(args.y, size.rows * size.hidden);
          },
          FfnTolerance());
    }
  }
}

TEST_P(FfnCudaTest, GroupedAgrees) {
  const auto [w_dtype, x_dtype] = GetParam();
  struct Size {
    int64_t rows;
    int top_k, experts;
    int64_t hidden, inter;
  };
  for (const Size& size : {Size{0, 2, 4, 32, 16},
                           {1, 4, 16, 128, 128},
                           {3, 2, 5, 33, 17},
                           {37, 4, 16, 128, 128},
                           {200, 4, 16, 128, 128},
                           {131, 3, 7, 72, 40},
                           {8, 8, 32, 1024, 512},
                           {400, 8, 32, 256, 128}}) {
    std::vector<HostExpert> experts;
    for (int e = 0; e < size.experts; ++e) {
      experts.emplace_back(w_dtype, size.hidden, size.inter, 100 + 3 * e);
    }
    // Distinct experts a row; some are elsewhere, and one row has none.
    std::mt19937 generator(9);
    std::vector<int32_t> chosen;
    for (int64_t row = 0; row < size.rows; ++row) {
      std::vector<int32_t> all(size.experts);
      for (int e = 0; e < size.experts; ++e) all[e] = e;
      std::shuffle(all.begin(), all.end(), generator);
      for (int j = 0; j < size.top_k; ++j) {
        chosen.push_back(row == 1 || generator() % 4 == 0 ? -1 : all[j]);
      }
    }
    const Tensor x = SmallRows(x_dtype, size.rows * size.hidden, 3);
    const auto weights = RandomFloats(size.rows * size.top_k, 6);
    SCOPED_TRACE(testing::Message() << size.rows << " rows of " << size.hidden
                                    << ", " << size.inter);
    ExpectSame(
        [&, x_dtype = x_dtype](DeviceArena& arena) {
          std::vector<GatedMlpWeights> views;
          for (const HostExpert& expert : experts) {
            views.push_back(expert.Put(arena));
          }
          GroupedFfnArgs args;
          args.x = arena.Put(x);
          args.x_dtype = x_dtype;
          args.rows = size.rows;
          args.top_k = size.top_k;
          args.local_experts = arena.Put(chosen);
          args.weights = arena.Put(weights);
          args.experts = views;
          args.hidden = size.hidden;
          args.y = arena.Make<float>(size.rows * size.hidden);
          args.workspace = arena.MakeBytes(
              GroupedFfnWorkspaceBytes(size.rows, size.top_k, size.hidden,
                                       size.inter, x_dtype, size.experts));
          arena.backend().GroupedFfn(args);
          return arena.Get(args.y, size.rows * size.hidden);
        },
        // On the GPU many rows of bf16 round each expert's result as well.
        x_dtype == DType::kBFloat16 && size.rows >= 128 ? 4e-3
                                                        : FfnTolerance());
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, FfnCudaTest,
    testing::Values(FfnCase{DType::kFloat32, DType::kFloat32},
                    FfnCase{DType::kBFloat16, DType::kFloat32},
                    FfnCase{DType::kBFloat16, DType::kBFloat16},
                    FfnCase{DType::kFloat8E4M3, DType::kBFloat16},
                    FfnCase{DType::kFloat8E4M3, DType::kFloat32}),
    [](const auto& info) {
      return std::string(Name(info.param.w_dtype)) + "_" +
             Name(info.param.x_dtype);
    });

}  // namespace
}  // namespace ring
