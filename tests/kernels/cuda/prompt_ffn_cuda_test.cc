// SwiGLU blocks over many rows on tensor cores: bf16 against the CPU, e4m3
// against double arithmetic on the same quantised numbers.
#include <functional>
#include <random>

#include "kernels/grouped_ffn/grouped_ffn.h"
#include "tests/kernels/cuda/block_weights.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

// Two roundings that may fall to the other side, those of h and of an expert's
// result.
constexpr double kBf16Tolerance = 4e-3;
// An inner activation in the middle between two e4m3 values may become the
// other one, up to 1/8 off: rarely, but by much. The result's rounding to bf16
// is 2e-3. What bf16 activations would give is 4e-2 away.
constexpr double kE4M3Tolerance = 1e-2;

struct Problem {
  DType dtype;
  int64_t rows;
  int top_k;
  int experts;
  int64_t hidden;
  int64_t inter;
};

class PromptFfn {
 public:
  explicit PromptFfn(const Problem& problem) : p(problem) {
    for (int e = 0; e < p.experts; ++e) {
      const uint32_t seed = 100 + 10 * e;
      gate.emplace_back(p.dtype, p.inter, p.hidden, seed, &memory);
      up.emplace_back(p.dtype, p.inter, p.hidden, seed + 3, &memory);
      down.emplace_back(p.dtype, p.hidden, p.inter, seed + 6, &memory);
    }
    for (float value : RandomFloats(p.rows * p.hidden, 3)) {
      x.push_back(ToFloat(ToBFloat16(value)));
    }
    // A row of zeros has no scale of its own.
    if (p.rows > 2) std::fill(x.begin(), x.begin() + p.hidden, 0.0f);
    weights = RandomFloats(p.rows * p.top_k, 6);
  }

  // Distinct experts a row; some are elsewhere, one row and one expert have
  // none.
  void ChooseAtRandom() {
    std::mt19937 generator(9);
    for (int64_t row = 0; row < p.rows; ++row) {
      std::vector<int32_t> all(p.experts);
      for (int e = 0; e < p.experts; ++e) all[e] = e;
      std::shuffle(all.begin(), all.end(), generator);
      for (int j = 0; j < p.top_k; ++j) {
        const bool none = row == 1 || all[j] == 1 || generator() % 4 == 0;
        chosen.push_back(none ? -1 : all[j]);
      }
    }
  }
  void ChooseOne(int expert) {
    chosen.assign(p.rows * p.top_k, -1);
    for (int64_t row = 0; row < p.rows; ++row) {
      chosen[row * p.top_k + row % p.top_k] = expert;
    }
  }

  std::vector<GatedMlpWeights> Views(const char* at) const {
    std::vector<GatedMlpWeights> views;
    for (int e = 0; e < p.experts; ++e) {
      views.push_back({gate[e].At(at), up[e].At(at), down[e].At(at)});
    }
    return views;
  }

  std::vector<float> Grouped(DeviceArena& arena) const {
    const std::vector<GatedMlpWeights> views = Views(arena.Put(memory));
    GroupedFfnArgs args;
    args.x = arena.Put(Tensor(DType::kBFloat16, x));
    args.x_dtype = DType::kBFloat16;
    args.rows = p.rows;
    args.top_k = p.top_k;
    args.local_experts = arena.Put(chosen);
    args.weights = arena.Put(weights);
    args.experts = views;
    args.hidden = p.hidden;
    args.y = arena.Make<float>(p.rows * p.hidden);
    args.workspace = arena.MakeBytes(GroupedFfnWorkspaceBytes(
        p.rows, p.top_k, p.hidden, p.inter, DType::kBFloat16, p.experts));
    arena.backend().GroupedFfn(args);
    const auto first = arena.Get(args.y, p.rows * p.hidden);
    // Which block computes a tile differs from run to run, no bit does.
    for (int repeat = 0; repeat < 3; ++repeat) {
      arena.backend().GroupedFfn(args);
      EXPECT_EQ(arena.Get(args.y, p.rows * p.hidden), first);
    }
    return first;
  }

  std::vector<float> Dense(DeviceArena& arena, bool accumulate) const {
    DenseFfnArgs args;
    args.x = arena.Put(Tensor(DType::kBFloat16, x));
    args.x_dtype = DType::kBFloat16;
    args.rows = p.rows;
    args.weights = Views(arena.Put(memory))[0];
    args.y = arena.Put(std::vector<float>(p.rows * p.hidden, 0.5f));
    args.accumulate = accumulate;
    args.workspace = arena.MakeBytes(
        DenseFfnWorkspaceBytes(p.rows, p.inter, DType::kBFloat16));
    arena.backend().DenseFfn(args);
    return arena.Get(args.y, p.rows * p.hidden);
  }

  // y of every `step`-th row in double, with x and h as e4m3. weight(row,
  // expert): what the expert's result is multiplied by.
  std::vector<double> Expected(
      int64_t step, const std::function<double(int64_t, int)>& weight) const {
    const int64_t count = (p.rows + step - 1) / step;
    std::vector<double> y(count * p.hidden);
    for (int e = 0; e < p.experts; ++e) {
      std::vector<int64_t> rows;
      std::vector<std::vector<double>> in;
      for (int64_t i = 0; i < count; ++i) {
        if (weight(i * step, e) == 0) continue;
        rows.push_back(i);
        in.push_back(QuantisedRow(&x[i * step * p.hidden], p.hidden));
      }
      if (rows.empty()) continue;
      const auto g = gate[e].Multiply(memory, in);
      const auto u = up[e].Multiply(memory, in);
      std::vector<std::vector<double>> h;
      for (size_t m = 0; m < rows.size(); ++m) {
        std::vector<float> values(p.inter);
        for (int64_t j = 0; j < p.inter; ++j) {
          values[j] =
              static_cast<float>(g[m][j] / (1 + std::exp(-g[m][j])) * u[m][j]);
        }
        h.push_back(QuantisedRow(values.data(), p.inter));
      }
      const auto out = down[e].Multiply(memory, h);
      for (size_t m = 0; m < rows.size(); ++m) {
        for (int64_t j = 0; j < p.hidden; ++j) {
          y[rows[m] * p.hidden + j] += weight(rows[m] * step, e) * out[m][j];
        }
      }
    }
    return y;
  }
  std::vector<double> ExpectedGrouped(int64_t step) const {
    return Expected(step, [&](int64_t row, int expert) {
      double weight = 0;
      for (int j = 0; j < p.top_k; ++j) {
        const int64_t unit = row * p.top_k + j;
        if (chosen[unit] == expert) weight += weights[unit];
      }
      return weight;
    });
  }

  std::vector<float> EveryRow(const std::vector<float>& y, int64_t step) const {
    std::vector<float> some;
    for (int64_t row = 0; row < p.rows; row += step) {
      some.insert(some.end(), y.begin() + row * p.hidden,
                  y.begin() + (row + 1) * p.hidden);
    }
    return some;
  }

  const Problem p;
  std::vector<char> memory;
  std::vector<BlockWeight> gate, up, down;
  std::vector<float> x;  // [rows, hidden], values of bf16
  std::vector<float> weights;
  std::vector<int32_t> chosen;
};

void ExpectGrouped(const PromptFfn& ffn, int64_t step) {
  SCOPED_TRACE(testing::Message()
               << ffn.p.rows << " rows, " << ffn.p.experts << " experts of "
               << ffn.p.hidden << ", " << ffn.p.inter);
  if (ffn.p.dtype == DType::kBFloat16) {
    ExpectSame([&](DeviceArena& arena) { return ffn.Grouped(arena); },
               kBf16Tolerance);
    return;
  }
  DeviceArena arena(TestGpu());
  const auto actual = ffn.EveryRow(ffn.Grouped(arena), step);
  const auto expected = ffn.ExpectedGrouped(step);
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_LE(RelativeL2(actual, expected, expected.size()), kE4M3Tolerance);
}

class PromptFfnCudaTest : public testing::TestWithParam<DType> {};

TEST_P(PromptFfnCudaTest, GroupedAgrees) {
  // Fewer rows take the decode kernels.
  for (const Problem& problem : {Problem{GetParam(), 257, 1, 1, 512, 512},
                                 {GetParam(), 260, 2, 3, 512, 512},
                                 {GetParam(), 400, 4, 9, 1024, 256},
                                 {GetParam(), 1500, 2, 5, 640, 512}}) {
    PromptFfn ffn(problem);
    ffn.ChooseAtRandom();
    ExpectGrouped(ffn, 1 + problem.rows / 100);
  }
}

TEST_P(PromptFfnCudaTest, GroupedAgreesIfOneExpertHasAllRows) {
  PromptFfn ffn({GetParam(), 300, 2, 4, 512, 512});
  ffn.ChooseOne(2);
  ExpectGrouped(ffn, 3);
}

TEST_P(PromptFfnCudaTest, GroupedGivesZerosIfNoRowHasAnExpert) {
  PromptFfn ffn({GetParam(), 200, 2, 4, 512, 512});
  ffn.chosen.assign(400, -1);
  DeviceArena arena(TestGpu());
  EXPECT_EQ(ffn.Grouped(arena), std::vector<float>(200 * 512, 0.0f));
}

TEST_P(PromptFfnCudaTest, GroupedAgreesOnModelSizes) {
  PromptFfn ffn({GetParam(), 260, 2, 3, 4096, 1024});
  ffn.ChooseAtRandom();
  ExpectGrouped(ffn, 33);
}

TEST_P(PromptFfnCudaTest, DenseAgrees) {
  for (const auto& [rows, hidden, inter] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 512, 512},
        {65, 512, 640},
        {300, 1024, 256}}) {
    const PromptFfn ffn({GetParam(), rows, 1, 1, hidden, inter});
    for (bool accumulate : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << hidden << ", "
                                      << inter << ", " << accumulate);
      const auto run = [&](DeviceArena& arena) {
        return ffn.Dense(arena, accumulate);
      };
      if (GetParam() == DType::kBFloat16) {
        ExpectSame(run, kBf16Tolerance);
        continue;
      }
      DeviceArena arena(TestGpu());
      const auto actual = run(arena);
      auto expected = ffn.Expected(1, [](int64_t, int) { return 1.0; });
      for (double& y : expected) y += accumulate ? 0.5 : 0;
      EXPECT_LE(RelativeL2(actual, expected, expected.size()), kE4M3Tolerance);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PromptFfnCudaTest,
                         testing::Values(DType::kBFloat16, DType::kFloat8E4M3),
                         [](const auto& info) { return Name(info.param); });

}  // namespace
}  // namespace ring
