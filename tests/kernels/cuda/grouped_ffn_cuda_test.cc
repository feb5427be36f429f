// CPU = CUDA for dense and grouped SwiGLU blocks.
#include "kernels/grouped_ffn/grouped_ffn.h"

#include <random>

#include "kernels/norm/residual_norm.h"
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

// Puts all experts into one buffer at equal distances, as the shard's memory
// plan does.
std::vector<GatedMlpWeights> PutAll(DeviceArena& arena,
                                    const std::vector<HostExpert>& experts) {
  constexpr size_t kAlignment = 64;
  std::vector<unsigned char> bytes;
  const auto append = [&](const void* from, int64_t n) {
    const size_t at = bytes.size();
    bytes.resize((at + n + kAlignment - 1) / kAlignment * kAlignment);
    if (n > 0) std::memcpy(bytes.data() + at, from, n);
    return reinterpret_cast<const char*>(at);
  };
  std::vector<GatedMlpWeights> views;
  for (const HostExpert& expert : experts) {
    GatedMlpWeights view;
    for (const auto& [from, to] : {std::pair{&expert.gate, &view.gate},
                                   {&expert.up, &view.up},
                                   {&expert.down, &view.down}}) {
      WeightMatrix w = from->view();
      w.data = append(w.data, w.rows * w.row_stride *
                                  static_cast<int64_t>(SizeOf(w.dtype)));
      if (w.scales != nullptr) {
        w.scales = reinterpret_cast<const float*>(append(
            w.scales, 3 * w.scale_cols * static_cast<int64_t>(sizeof(float))));
        w.row_scale = reinterpret_cast<const int32_t*>(append(
            w.row_scale, w.rows * static_cast<int64_t>(sizeof(int32_t))));
      }
      *to = w;
    }
    views.push_back(view);
  }
  // Offsets become addresses.
  const auto base = reinterpret_cast<uintptr_t>(arena.Put(bytes));
  for (GatedMlpWeights& view : views) {
    for (WeightMatrix* w : {&view.gate, &view.up, &view.down}) {
      const auto move = [base](auto** p) {
        *p = reinterpret_cast<std::remove_pointer_t<decltype(p)>>(
            reinterpret_cast<uintptr_t>(*p) + base);
      };
      move(&w->data);
      if (w->dtype != DType::kFloat8E4M3) continue;
      move(&w->scales);
      move(&w->row_scale);
    }
  }
  return views;
}

// Distinct experts a row; some are elsewhere, and row 1 has none.
std::vector<int32_t> ChooseExperts(int64_t rows, int top_k, int experts) {
  std::mt19937 generator(9);
  std::vector<int32_t> chosen;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> all(experts);
    for (int e = 0; e < experts; ++e) all[e] = e;
    std::shuffle(all.begin(), all.end(), generator);
    for (int j = 0; j < top_k; ++j) {
      chosen.push_back(row == 1 || generator() % 4 == 0 ? -1 : all[j]);
    }
  }
  return chosen;
}

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
    // 0: no shared expert. It serves the rows from the second on.
    int64_t shared_inter;
  };
  for (const Size& size : {Size{0, 2, 4, 32, 16, 16},
                           {1, 4, 16, 128, 128, 0},
                           {1, 4, 16, 128, 128, 128},
                           {3, 2, 5, 33, 17, 9},
                           {37, 4, 16, 128, 128, 64},
                           {37, 4, 16, 128, 64, 256},
                           {200, 2, 3, 256, 192, 128},
                           {256, 4, 16, 128, 128, 128},
                           {131, 3, 7, 72, 40, 0},
                           {8, 8, 32, 1024, 512, 1024},
                           {17, 2, 4, 4096, 1024, 1024},
                           {33, 8, 32, 1024, 512, 1024},
                           {100, 4, 16, 256, 128, 0},
                           {130, 2, 3, 256, 384, 128},
                           {255, 2, 2, 4096, 128, 256},
                           {400, 8, 32, 256, 128, 128}}) {
    std::vector<HostExpert> experts;
    for (int e = 0; e < size.experts; ++e) {
      experts.emplace_back(w_dtype, size.hidden, size.inter, 100 + 3 * e);
    }
    const HostExpert shared(w_dtype, size.hidden, size.shared_inter, 50);
    const std::vector<int32_t> chosen =
        ChooseExperts(size.rows, size.top_k, size.experts);
    const Tensor x = SmallRows(x_dtype, size.rows * size.hidden, 3);
    const auto weights = RandomFloats(size.rows * size.top_k, 6);
    SCOPED_TRACE(testing::Message()
                 << size.rows << " rows of " << size.hidden << ", "
                 << size.inter << ", shared " << size.shared_inter);
    ExpectSame(
        [&, x_dtype = x_dtype](DeviceArena& arena) {
          const std::vector<GatedMlpWeights> views = PutAll(arena, experts);
          const GatedMlpWeights shared_view = shared.Put(arena);
          GroupedFfnArgs args;
          args.x = arena.Put(x);
          args.x_dtype = x_dtype;
          args.rows = size.rows;
          args.top_k = size.top_k;
          args.local_experts = arena.Put(chosen);
          args.weights = arena.Put(weights);
          args.experts = views;
          args.hidden = size.hidden;
          if (size.shared_inter > 0 && size.rows > 0) {
            args.shared = &shared_view;
            args.shared_begin = size.rows > 1 ? 1 : 0;
            args.shared_rows = size.rows - args.shared_begin;
            args.shared_decode_rows = args.shared_rows / 2;
          }
          args.y = arena.Make<float>(size.rows * size.hidden);
          args.workspace = arena.MakeBytes(std::max(
              GroupedFfnWorkspaceBytes(size.rows, size.top_k, size.hidden,
                                       size.inter, x_dtype, size.experts),
              DenseFfnWorkspaceBytes(size.rows, size.shared_inter, x_dtype)));
          arena.backend().GroupedFfn(args);
          return arena.Get(args.y, size.rows * size.hidden);
        },
        // On the GPU many rows of bf16 round each expert's result as well.
        x_dtype == DType::kBFloat16 && size.rows >= 128 ? 4e-3
                                                        : FfnTolerance());
  }
}

// With the residual sum and the norm of what comes out.
TEST_P(FfnCudaTest, GroupedAndNormAgree) {
  const auto [w_dtype, x_dtype] = GetParam();
  struct Size {
    int64_t rows;
    int top_k, experts;
    int64_t hidden, inter, shared_inter;
  };
  for (const Size& size : {Size{1, 4, 16, 128, 128, 128},
                           {3, 2, 5, 33, 17, 9},
                           {7, 4, 6, 4096, 128, 0},
                           {37, 4, 16, 128, 128, 256},
                           {130, 2, 3, 256, 384, 128},
                           {300, 2, 4, 256, 128, 128}}) {
    std::vector<HostExpert> experts;
    for (int e = 0; e < size.experts; ++e) {
      experts.emplace_back(w_dtype, size.hidden, size.inter, 100 + 3 * e);
    }
    const HostExpert shared(w_dtype, size.hidden, size.shared_inter, 50);
    const std::vector<int32_t> chosen =
        ChooseExperts(size.rows, size.top_k, size.experts);
    const int64_t cells = size.rows * size.hidden;
    const Tensor x = SmallRows(x_dtype, cells, 3);
    const auto weights = RandomFloats(size.rows * size.top_k, 6);
    const auto residual = RandomFloats(cells, 7);
    const auto norm_weight = RandomFloats(size.hidden, 8);
    SCOPED_TRACE(testing::Message() << size.rows << " rows of " << size.hidden);
    for (bool normed : {false, true}) {
      ExpectSame(
          [&, x_dtype = x_dtype](DeviceArena& arena) {
            const std::vector<GatedMlpWeights> views = PutAll(arena, experts);
            const GatedMlpWeights shared_view = shared.Put(arena);
            GroupedFfnArgs args;
            args.x = arena.Put(x);
            args.x_dtype = x_dtype;
            args.rows = size.rows;
            args.top_k = size.top_k;
            args.local_experts = arena.Put(chosen);
            args.weights = arena.Put(weights);
            args.experts = views;
            args.hidden = size.hidden;
            if (size.shared_inter > 0) {
              args.shared = &shared_view;
              args.shared_rows = args.shared_decode_rows = size.rows;
            }
            args.y = arena.Make<float>(cells);
            args.workspace = arena.MakeBytes(std::max(
                GroupedFfnWorkspaceBytes(size.rows, size.top_k, size.hidden,
                                         size.inter, x_dtype, size.experts),
                DenseFfnWorkspaceBytes(size.rows, size.shared_inter, x_dtype)));
            ResidualNormArgs norm;
            norm.residual = arena.Put(residual);
            norm.norm_weight = arena.Put(norm_weight);
            norm.eps = 1e-6f;
            norm.normed = arena.MakeBytes(cells * SizeOf(x_dtype));
            norm.normed_dtype = x_dtype;
            args.norm = &norm;
            arena.backend().GroupedFfn(args);
            return normed ? arena.GetFloats(norm.normed, cells, x_dtype)
                          : arena.Get(norm.residual, cells);
          },
          x_dtype == DType::kBFloat16 ? 4e-3 : FfnTolerance());
    }
  }
}

// A part of the rows and all at once, while they pass the same kernel, with few
// and with many rows an expert.
TEST_P(FfnCudaTest, ManyRowsDoNotDependOnEachOther) {
  const auto [w_dtype, x_dtype] = GetParam();
  if (x_dtype != DType::kBFloat16) return;
  constexpr int64_t kRows = 200;
  constexpr int kTopK = 3;
  constexpr int64_t kHidden = 1280;
  constexpr int64_t kInter = 384;
  std::vector<HostExpert> experts;
  for (int e = 0; e < 6; ++e) {
    experts.emplace_back(w_dtype, kHidden, kInter, 100 + 3 * e);
  }
  const HostExpert shared(w_dtype, kHidden, 128, 50);
  DeviceArena arena(TestGpu());
  const std::vector<GatedMlpWeights> views = PutAll(arena, experts);
  const GatedMlpWeights shared_view = shared.Put(arena);
  GroupedFfnArgs args;
  args.x = arena.Put(SmallRows(x_dtype, kRows * kHidden, 3));
  args.x_dtype = x_dtype;
  args.top_k = kTopK;
  args.local_experts = arena.Put(ChooseExperts(kRows, kTopK, 6));
  args.weights = arena.Put(RandomFloats(kRows * kTopK, 6));
  args.experts = views;
  args.hidden = kHidden;
  args.shared = &shared_view;
  args.y = arena.Make<float>(kRows * kHidden);
  args.workspace = arena.MakeBytes(
      GroupedFfnWorkspaceBytes(kRows, kTopK, kHidden, kInter, x_dtype, 6));
  const auto run = [&](int64_t rows) {
    args.rows = args.shared_rows = args.shared_decode_rows = rows;
    arena.backend().GroupedFfn(args);
    return arena.Get(args.y, rows * kHidden);
  };
  const std::vector<float> together = run(kRows);
  for (int64_t rows : {kRows, int64_t{33}, int64_t{90}}) {
    EXPECT_EQ(run(rows), std::vector<float>(together.begin(),
                                            together.begin() + rows * kHidden))
        << rows << " rows";
  }
}

// Row by row and all at once, with several rows an expert and more than one
// group of them.
TEST_P(FfnCudaTest, RowsAloneEqualRowsTogether) {
  const auto [w_dtype, x_dtype] = GetParam();
  if (x_dtype != DType::kBFloat16) return;
  constexpr int64_t kRows = 67;
  constexpr int kTopK = 3;
  constexpr int64_t kHidden = 1280;
  constexpr int64_t kInter = 320;
  std::vector<HostExpert> experts;
  for (int e = 0; e < 5; ++e) {
    experts.emplace_back(w_dtype, kHidden, kInter, 100 + 3 * e);
  }
  const HostExpert shared(w_dtype, kHidden, 128, 50);
  DeviceArena arena(TestGpu());
  const std::vector<GatedMlpWeights> views = PutAll(arena, experts);
  const GatedMlpWeights shared_view = shared.Put(arena);
  const std::vector<int32_t> chosen = ChooseExperts(kRows, kTopK, 5);
  GroupedFfnArgs args;
  args.x = arena.Put(SmallRows(x_dtype, kRows * kHidden, 3));
  args.x_dtype = x_dtype;
  args.rows = kRows;
  args.top_k = kTopK;
  args.local_experts = arena.Put(chosen);
  args.weights = arena.Put(RandomFloats(kRows * kTopK, 6));
  args.experts = views;
  args.hidden = kHidden;
  args.shared = &shared_view;
  args.shared_rows = args.shared_decode_rows = kRows;
  args.y = arena.Make<float>(kRows * kHidden);
  args.workspace = arena.MakeBytes(
      GroupedFfnWorkspaceBytes(kRows, kTopK, kHidden, kInter, x_dtype, 5));
  arena.backend().GroupedFfn(args);
  const std::vector<float> together = arena.Get(args.y, kRows * kHidden);
  for (int repeat = 0; repeat < 20; ++repeat) {
    arena.backend().GroupedFfn(args);
    ASSERT_EQ(arena.Get(args.y, kRows * kHidden), together) << repeat;
  }
  args.rows = args.shared_rows = args.shared_decode_rows = 1;
  for (int64_t row = 0; row < kRows; ++row) {
    arena.backend().GroupedFfn(args);
    ASSERT_EQ(arena.Get(args.y, kHidden),
              std::vector<float>(together.begin() + row * kHidden,
                                 together.begin() + (row + 1) * kHidden))
        << "row " << row;
    args.x = static_cast<const BFloat16*>(args.x) + kHidden;
    args.local_experts += kTopK;
    args.weights += kTopK;
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
