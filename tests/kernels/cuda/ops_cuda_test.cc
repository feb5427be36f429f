// CPU = CUDA for lookups, tables, norms, routing and sampling.
#include <limits>

#include "kernels/elementwise/embedding.h"
#include "kernels/elementwise/scatter.h"
#include "kernels/moe_routing/moe_routing.h"
#include "kernels/norm/residual_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/sampling/sampling.h"
#include "kernels/weights/block_quantize.h"
#include "kernels/weights/random_weights.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(EmbeddingCudaTest, Agrees) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (int64_t cols : {1, 33, 4096}) {
      const TestWeight table(dtype, {10, cols, 2, 1}, 1);
      ExpectSame(
          [&](DeviceArena& arena) {
            EmbeddingArgs args;
            args.tokens = arena.Put<int32_t>({100, 109, 110, 99, -1, -1, -1});
            args.token_slots = arena.Put<int32_t>({0, 0, 0, 0, 1, 2, -1});
            args.last_tokens = arena.Put<int32_t>({5, 103, 7});
            args.rows = 7;
            args.table = arena.Put(table);
            args.vocab_begin = 100;
            args.out = arena.Make<float>(7 * cols);
            arena.backend().Embedding(args);
            return arena.Get(args.out, 7 * cols);
          },
          0);
    }
  }
}

TEST(GatherRowsCudaTest, Agrees) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (int64_t cols : {1, 513}) {
      const Tensor x(dtype, RandomFloats(6 * cols, 1));
      ExpectSame(
          [&](DeviceArena& arena) {
            GatherRowsArgs args;
            args.x = arena.Put(x);
            args.dtype = dtype;
            args.cols = cols;
            args.index = arena.Put<int32_t>({5, -1, 0, 5});
            args.count = 4;
            args.out = arena.MakeBytes(4 * cols * SizeOf(dtype));
            arena.backend().GatherRows(args);
            return arena.GetFloats(args.out, 4 * cols, dtype);
          },
          0);
    }
  }
}

// Rectangles that start and end inside a block of random numbers.
TEST(RandomWeightsCudaTest, Agrees) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (int64_t cols : {1, 29, 2050}) {
      ExpectSame(
          [&](DeviceArena& arena) {
            RandomWeightsArgs args;
            args.key = 0x123456789abcdef0;
            args.mean = 1;
            args.deviation = 0.25;
            args.tensor_cols = cols + 6;
            args.row_begin = 70000;
            args.rows = 5;
            args.col_begin = 3;
            args.cols = cols;
            args.dtype = dtype;
            args.out = arena.MakeBytes(5 * cols * SizeOf(dtype));
            arena.backend().RandomWeights(args);
            return arena.GetFloats(args.out, 5 * cols, dtype);
          },
          0);
    }
  }
}

// Whole blocks, a ragged end, and a part that is kept.
TEST(QuantizeBlocksCudaTest, Agrees) {
  struct Shape {
    int64_t rows, cols, row_begin, row_end, col_begin, col_end;
  };
  for (const Shape& s :
       {Shape{128, 256, 0, 128, 0, 256}, Shape{300, 200, 0, 300, 0, 200},
        Shape{256, 256, 100, 140, 5, 250}, Shape{1, 1, 0, 1, 0, 1}}) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const Tensor x(dtype, RandomFloats(s.rows * s.cols, 1));
      ExpectSame(
          [&](DeviceArena& arena) {
            QuantizeBlocksArgs args;
            args.x = arena.Put(x);
            args.x_dtype = dtype;
            args.rows = s.rows;
            args.cols = s.cols;
            args.row_begin = s.row_begin;
            args.row_end = s.row_end;
            args.col_begin = s.col_begin;
            args.col_end = s.col_end;
            const int64_t kept =
                (s.row_end - s.row_begin) * (s.col_end - s.col_begin);
            const int64_t scales =
                (s.rows + 127) / 128 * ((s.cols + 127) / 128);
            args.q = arena.Make<Float8E4M3>(kept);
            args.scales = arena.Make<float>(scales);
            arena.backend().QuantizeBlocks(args);
            std::vector<float> all = arena.Get(args.scales, scales);
            for (Float8E4M3 q : arena.Get(args.q, kept)) {
              all.push_back(ToFloat(q));
            }
            return all;
          },
          0);
    }
  }
}

TEST(LocalExpertsCudaTest, Agrees) {
  DeviceArena gpu(TestGpu());
  LocalExpertsArgs args;
  args.experts = gpu.Put<int32_t>({0, 1, 2, 3, 1, 2});
  args.rows = 3;
  args.top_k = 2;
  args.row_valid = gpu.Put<int32_t>({1, 0, 1});
  args.to_local = gpu.Put<int32_t>({-1, 0, 1, -1});
  args.local = gpu.Make<int32_t>(6);
  gpu.backend().LocalExperts(args);
  EXPECT_EQ(gpu.Get(args.local, 6),
            (std::vector<int32_t>{-1, 0, -1, -1, 0, 1}));
}

TEST(ScatterIntsCudaTest, LaterEntriesWin) {
  std::vector<int32_t> index, values;
  for (int i = 0; i < 1000; ++i) {
    index.push_back(i % 9 == 0 ? -1 : (i * i) % 313);
    values.push_back(i);
  }
  const auto run = [&](Backend* backend) {
    DeviceArena arena(backend);
    int32_t* const out = arena.Put(std::vector<int32_t>(313, -7));
    backend->ScatterInts({arena.Put(index), arena.Put(values), 1000, out});
    backend->ScatterInts({nullptr, nullptr, 0, out});
    return arena.Get(out, 313);
  };
  EXPECT_EQ(run(TestGpu()), run(TestCpu()));
}

TEST(RopeTableCudaTest, AgreesAtLargePositions) {
  const RopeFrequencies rope =
      MakeRopeFrequencies({.rotary_dim = 64, .theta = 6e5});
  for (bool want_cos : {true, false}) {
    ExpectSame(
        [&](DeviceArena& arena) {
          RopeTableArgs args;
          args.positions = arena.Put<int32_t>({0, 1, 4095, 131071});
          args.rows = 4;
          args.frequency = arena.Put(rope.frequency);
          args.gain = 1.25;
          args.half = 32;
          args.cos = arena.Make<float>(4 * 32);
          args.sin = arena.Make<float>(4 * 32);
          arena.backend().RopeTable(args);
          return arena.Get(want_cos ? args.cos : args.sin, 4 * 32);
        },
        1e-7);
  }
}

TEST(ResidualNormCudaTest, Agrees) {
  struct Variant {
    DType parts, normed;
    int num_parts;
    int64_t rows, cols;
    bool norm, groups;
  };
  for (const Variant& v :
       {Variant{DType::kFloat32, DType::kFloat32, 1, 3, 128, true, false},
        {DType::kFloat32, DType::kBFloat16, 4, 5, 4096, true, true},
        {DType::kBFloat16, DType::kBFloat16, 2, 1, 33, true, false},
        {DType::kFloat32, DType::kFloat32, 0, 2, 1, true, false},
        {DType::kFloat32, DType::kFloat32, 2, 2, 70, false, true},
        {DType::kFloat32, DType::kFloat32, 2, 0, 70, true, false}}) {
    for (bool want_normed : {false, true}) {
      if (want_normed && !v.norm) continue;
      const int64_t n = v.rows * v.cols;
      const Tensor parts(v.parts, RandomFloats(v.num_parts * n, 1));
      const auto residual = RandomFloats(n, 2);
      const auto weight = RandomFloats(v.cols, 3);
      auto squares = RandomFloats(v.num_parts * v.rows, 4);
      for (float& x : squares) x = x * x + 1;
      ExpectSame(
          [&](DeviceArena& arena) {
            ResidualNormArgs args;
            args.parts = arena.Put(parts);
            args.parts_dtype = v.parts;
            args.num_parts = v.num_parts;
            args.part_stride = n;
            args.rows = v.rows;
            args.cols = v.cols;
            args.residual = arena.Put(residual);
            if (v.norm) args.norm_weight = arena.Put(weight);
            args.eps = 1e-6f;
            args.normed = arena.MakeBytes(n * SizeOf(v.normed));
            args.normed_dtype = v.normed;
            if (v.groups) args.sum_of_squares = arena.Put(squares);
            args.parts_per_group = 2;
            args.group_width = 64;
            args.group_eps = 1e-6f;
            arena.backend().ResidualNorm(args);
            return want_normed ? arena.GetFloats(args.normed, n, v.normed)
                               : arena.Get(args.residual, n);
          },
          want_normed ? Tolerance(v.normed) : 1e-6);
    }
  }
}

struct Routing {
  std::vector<int32_t> experts;
  std::vector<int32_t> local;
  std::vector<float> weights;
};

TEST(MoeRoutingCudaTest, ChoosesTheSameExperts) {
  struct Variant {
    int64_t rows, hidden;
    int experts, n_group, topk_group, top_k;
    bool norm, bias, norm_topk;
    DType x, w;
  };
  for (const Variant& v : {Variant{1, 128, 16, 4, 2, 4, true, true, true,
                                   DType::kFloat32, DType::kFloat32},
                           {70, 128, 16, 4, 2, 4, true, true, false,
                            DType::kFloat32, DType::kBFloat16},
                           {9, 4096, 256, 8, 4, 8, true, true, true,
                            DType::kFloat32, DType::kFloat32},
                           {600, 1000, 200, 8, 4, 8, true, true, true,
                            DType::kFloat32, DType::kFloat32},
                           {5, 33, 6, 1, 1, 6, false, false, true,
                            DType::kBFloat16, DType::kBFloat16},
                           {3, 16, 4, 4, 3, 3, false, true, true,
                            DType::kFloat32, DType::kFloat32},
                           {0, 16, 4, 4, 3, 3, false, true, true,
                            DType::kFloat32, DType::kFloat32}}) {
    const TestRows x(v.x, v.rows, v.hidden, 1);
    const TestWeight router(v.w, {v.experts, v.hidden}, 2);
    const auto norm = RandomFloats(v.hidden, 3);
    const auto bias = RandomFloats(v.experts, 4, 0.1f);
    const auto run = [&](Backend* backend) {
      DeviceArena arena(backend);
      MoeRoutingArgs args;
      args.x = arena.Put(x, v.rows, v.hidden, v.x);
      args.x_dtype = v.x;
      args.rows = v.rows;
      args.decode_rows = v.rows / 2;
      if (v.norm) args.norm_weight = arena.Put(norm);
      args.eps = 1e-6f;
      args.normed = arena.Make<float>(v.rows * v.hidden);
      args.router = arena.Put(router);
      if (v.bias) args.expert_bias = arena.Put(bias);
      args.num_experts = v.experts;
      args.n_group = v.n_group;
      args.topk_group = v.topk_group;
      args.top_k = v.top_k;
      args.norm_topk_prob = v.norm_topk;
      args.routed_scaling_factor = 2.5f;
      args.logits = arena.Make<float>(v.rows * v.experts);
      args.experts = arena.Make<int32_t>(v.rows * v.top_k);
      args.weights = arena.Make<float>(v.rows * v.top_k);
      // Every third expert is elsewhere, every fourth row is padding.
      std::vector<int32_t> to_local, row_valid;
      for (int e = 0; e < v.experts; ++e) {
        to_local.push_back(e % 3 == 0 ? -1 : 1000 - e);
      }
      for (int row = 0; row < v.rows; ++row) row_valid.push_back(row % 4 != 1);
      args.local = arena.Make<int32_t>(v.rows * v.top_k);
      args.to_local = arena.Put(to_local);
      if (v.bias) args.row_valid = arena.Put(row_valid);
      backend->MoeRouting(args);
      return Routing{arena.Get(args.experts, v.rows * v.top_k),
                     arena.Get(args.local, v.rows * v.top_k),
                     arena.Get(args.weights, v.rows * v.top_k)};
    };
    const Routing cpu = run(TestCpu());
    const Routing gpu = run(TestGpu());
    EXPECT_EQ(gpu.experts, cpu.experts) << v.experts << " experts";
    EXPECT_EQ(gpu.local, cpu.local) << v.experts << " experts";
    EXPECT_LE(RelativeL2(gpu.weights, cpu.weights, cpu.weights.size()), 1e-5);
  }
}

// A row's choice and weights do not depend on the rows beside it, nor on how
// many they are.
TEST(MoeRoutingCudaTest, RowsAloneEqualRowsTogether) {
  constexpr int64_t kRows = 45;
  constexpr int64_t kCols = 1000;
  constexpr int kTop = 4;
  const TestRows x(DType::kFloat32, kRows, kCols, 1);
  const TestWeight router(DType::kFloat32, {100, kCols}, 2);
  DeviceArena arena(TestGpu());
  MoeRoutingArgs args;
  args.x = arena.Put(x, kRows, kCols, DType::kFloat32);
  args.norm_weight = arena.Put(RandomFloats(kCols, 3));
  args.eps = 1e-6f;
  args.normed = arena.Make<float>(kRows * kCols);
  args.router = arena.Put(router);
  args.num_experts = 100;
  args.n_group = 5;
  args.topk_group = 3;
  args.top_k = kTop;
  args.logits = arena.Make<float>(kRows * 100);
  args.experts = arena.Make<int32_t>(kRows * kTop);
  args.weights = arena.Make<float>(kRows * kTop);
  args.rows = args.decode_rows = kRows;
  arena.backend().MoeRouting(args);
  const auto experts = arena.Get(args.experts, kRows * kTop);
  const auto weights = arena.Get(args.weights, kRows * kTop);
  args.rows = args.decode_rows = 1;
  for (int64_t row = 0; row < kRows; ++row) {
    arena.backend().MoeRouting(args);
    const auto begin = row * kTop;
    EXPECT_EQ(arena.Get(args.experts, kTop),
              std::vector<int32_t>(experts.begin() + begin,
                                   experts.begin() + begin + kTop));
    EXPECT_EQ(arena.Get(args.weights, kTop),
              std::vector<float>(weights.begin() + begin,
                                 weights.begin() + begin + kTop));
    args.x = static_cast<const float*>(args.x) + kCols;
  }
}

TEST(MoeRoutingCudaTest, TiesGoToTheLowerIndex) {
  const auto run = [](Backend* backend) {
    DeviceArena arena(backend);
    MoeRoutingArgs args;
    args.x = arena.Put(std::vector<float>(4, 0.0f));
    args.rows = args.decode_rows = 1;
    args.router = {arena.Put(std::vector<float>(8 * 4, 1.0f)), DType::kFloat32,
                   8, 4, 4};
    args.num_experts = 8;
    args.n_group = 4;
    args.topk_group = 2;
    args.top_k = 3;
    args.logits = arena.Make<float>(8);
    args.experts = arena.Make<int32_t>(3);
    args.weights = arena.Make<float>(3);
    backend->MoeRouting(args);
    return arena.Get(args.experts, 3);
  };
  EXPECT_EQ(run(TestGpu()), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(run(TestCpu()), (std::vector<int32_t>{0, 1, 2}));
}

// The whole sequence of a step as one rank runs it.
std::vector<SampledToken> SampleAll(Backend* backend,
                                    const std::vector<float>& logits,
                                    int64_t cols, int32_t num_token_ids,
                                    const std::vector<SamplingRow>& rows) {
  DeviceArena arena(backend);
  const int64_t n = static_cast<int64_t>(rows.size());
  const LogitsSlice slice = {arena.Put(logits), n, cols, 0, num_token_ids};
  const SamplingRow* const params = arena.Put(rows);
  RowStats* const part = arena.Make<RowStats>(n);
  RowStats* const stats = arena.Make<RowStats>(n);
  Threshold* const thresholds = arena.Make<Threshold>(n);
  uint64_t* const bins = arena.Make<uint64_t>(n * kThresholdBins);
  TokenDraw* const draws = arena.Make<TokenDraw>(n);
  SampledToken* const tokens = arena.Make<SampledToken>(n);
  int32_t* const ids = arena.Make<int32_t>(n);
  backend->LogitStats({slice, part});
  backend->MergeStats({part, 1, n, stats, thresholds});
  for (ThresholdKind kind : {ThresholdKind::kTopK, ThresholdKind::kTopP}) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      backend->ThresholdHistogram(
          {slice, params, stats, thresholds, kind, shift, bins});
      backend->NarrowThreshold({params, bins, 1, n, kind, shift, thresholds});
    }
  }
  backend->DrawTokens({slice, params, stats, thresholds, draws});
  backend->FinishTokens({params, stats, stats, draws, 1, n, tokens, ids});
  return arena.Get(tokens, n);
}

TEST(SamplingCudaTest, DrawsTheSameTokens) {
  for (int64_t cols : {1, 37, 1024, 157184}) {
    std::vector<SamplingRow> rows;
    for (int i = 0; i < 24; ++i) {
      SamplingRow row;
      row.temperature = i % 4 == 0 ? 0 : 0.3f * (i % 5);
      row.top_k = i % 3 == 0 ? 0 : 1 + i;
      row.top_p = i % 2 == 0 ? 1 : 0.9f;
      row.min_p = i % 7 == 0 ? 0.05f : 0;
      row.seed = 1234567890123ull * i;
      row.position = 17 * i;
      // The first id, one of the middle, and one that is never drawn.
      if (i % 8 == 7) row.given = static_cast<int32_t>(i / 8 * (cols / 2));
      rows.push_back(row);
    }
    const int64_t n = static_cast<int64_t>(rows.size());
    std::vector<float> logits = RandomFloats(n * cols, 8, 3.0f);
    logits[1 * cols] = kInf;
    logits[2 * cols + cols / 2] = std::nanf("");
    for (int64_t i = 0; i < cols; ++i) logits[3 * cols + i] = -kInf;
    for (int64_t i = 0; i < cols; ++i) logits[4 * cols + i] = 1;  // all tie
    const auto num_ids = static_cast<int32_t>(cols > 1 ? cols - 1 : cols);
    const auto cpu = SampleAll(TestCpu(), logits, cols, num_ids, rows);
    const auto gpu = SampleAll(TestGpu(), logits, cols, num_ids, rows);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(gpu[i].id, cpu[i].id) << "row " << i << " of " << cols;
      EXPECT_NEAR(gpu[i].logprob, cpu[i].logprob, 1e-5) << "row " << i;
    }
    EXPECT_EQ(gpu[1].id, -1);
    EXPECT_EQ(gpu[3].id, -1);
    EXPECT_EQ(gpu[4].id, 0);
  }
}

}  // namespace
}  // namespace ring
