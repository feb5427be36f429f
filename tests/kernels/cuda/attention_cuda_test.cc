// CPU = CUDA for both attention ops.
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/paged_attention/paged_attention.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

// cos and sin of arbitrary angles, one row of `half` for every row.
struct Angles {
  Angles(int64_t rows, int half) : half(half) {
    for (int64_t i = 0; i < rows * half; ++i) {
      cos.push_back(std::cos(0.37f * static_cast<float>(i)));
      sin.push_back(std::sin(0.37f * static_cast<float>(i)));
    }
  }
  RopeRows Put(DeviceArena& arena) const {
    return {arena.Put(cos), arena.Put(sin), half};
  }
  int half;
  std::vector<float> cos, sin;
};

// Two decode segments (one of two rows), padding, three prompt segments and
// two padding rows behind them.
constexpr int64_t kRows = 1 + 2 + 5 + 70 + 1 + 2;
SegmentList MixedSegments() {
  SegmentList list;
  list.Add({0, 1, 90, 0, 0, 0}, true);
  list.Add({1, 2, 130, 1, 2, 1}, true);
  list.AddPadding(true);
  list.Add({3, 5, 0, -1, 3, 2});
  list.Add({8, 70, 61, 4, 4, 3});
  list.Add({78, 1, 0, -1, 5, 4});
  list.AddPadding();
  return list;
}
constexpr int kSlots = 6;

struct AttentionCase {
  DType in;
  DType out;
  int head_dim;
};
std::string NameOfCase(const testing::TestParamInfo<AttentionCase>& info) {
  return std::string(Name(info.param.in)) + "_" + Name(info.param.out) + "_" +
         std::to_string(info.param.head_dim);
}
const AttentionCase kCases[] = {{DType::kFloat32, DType::kFloat32, 64},
                                {DType::kFloat32, DType::kFloat32, 128},
                                {DType::kFloat32, DType::kBFloat16, 128},
                                {DType::kBFloat16, DType::kBFloat16, 128}};

class LightningCudaTest : public testing::TestWithParam<AttentionCase> {};

TEST_P(LightningCudaTest, OutputsAndStatesAgree) {
  const auto [in, out, dim] = GetParam();
  struct Variant {
    int heads, groups;
    bool silu, norm;
    int half;
  };
  for (const Variant& variant : {Variant{4, 2, false, true, dim / 4},
                                 {3, 1, true, false, dim / 2},
                                 {4, 0, false, true, 0},
                                 {32, 4, false, true, dim / 4}}) {
    const int64_t width = int64_t{variant.heads} * dim;
    const SegmentList list = MixedSegments();
    const Tensor qkv(in, RandomFloats(kRows * 3 * width, 1));
    const Tensor gate(in, RandomFloats(kRows * width, 2));
    const auto norm = RandomFloats(2 * dim + width, 3);
    std::vector<float> rates;
    for (int h = 0; h < variant.heads; ++h) rates.push_back(0.01f + 0.3f * h);
    const auto states = RandomFloats(kSlots * width * dim, 4);
    const Angles angles(kRows, variant.half);
    bool want_states = false;
    const auto run = [&, in = in, out = out, dim = dim](DeviceArena& arena) {
      LightningAttentionArgs args;
      args.qkv = arena.Put(qkv);
      args.gate = arena.Put(gate);
      args.qkv_dtype = in;
      args.rows = kRows;
      args.num_heads = variant.heads;
      args.head_dim = dim;
      args.silu = variant.silu;
      const float* const weights = arena.Put(norm);
      if (variant.norm) {
        args.q_norm = weights;
        args.k_norm = weights + dim;
      }
      args.g_norm = weights + 2 * dim;
      args.eps = 1e-6f;
      args.rope = angles.Put(arena);
      args.decay_rates = arena.Put(rates);
      args.segments = arena.Put(list.View());
      args.states = arena.Put(states);
      args.groups = variant.groups;
      args.sum_of_squares = arena.Put(std::vector<float>(kRows, 0.0f));
      args.out = arena.Put(Tensor(out, std::vector<float>(kRows * width, 7)));
      args.out_dtype = out;
      args.workspace = arena.Make<float>(
          LightningWorkspaceFloats(kRows, variant.heads, dim));
      arena.backend().LightningAttention(args);
      if (want_states) return arena.Get(args.states, kSlots * width * dim);
      std::vector<float> all = arena.GetFloats(args.out, kRows * width, out);
      const auto squares = arena.Get(args.sum_of_squares, kRows);
      all.insert(all.end(), squares.begin(), squares.end());
      return all;
    };
    SCOPED_TRACE(testing::Message() << variant.heads << " heads");
    ExpectSame(run, Tolerance(out));
    want_states = true;
    ExpectSame(run, Tolerance(DType::kFloat32));
  }
}
INSTANTIATE_TEST_SUITE_P(All, LightningCudaTest, testing::ValuesIn(kCases),
                         NameOfCase);

class PagedCudaTest : public testing::TestWithParam<AttentionCase> {
 protected:
  void Compare(const SegmentList& list, int64_t rows, int heads, int kv_heads,
               int64_t max_pages) {
    const auto [in, out, dim] = GetParam();
    const int64_t width = int64_t{heads + 2 * kv_heads} * dim;
    const StepSegments host = list.View();
    const int64_t pages = host.num_segments * max_pages;
    std::vector<int32_t> table(pages);
    for (int64_t i = 0; i < pages; ++i) {
      table[i] = static_cast<int32_t>((i * 11 + 3) % pages);
    }
    // 11 and the number of pages must have no common divisor.
    ASSERT_NE(pages % 11, 0);
    const DType kv = out;
    const int64_t pool = pages * kv_heads * kPageTokens * dim;
    const Tensor qkv(in, RandomFloats(rows * width, 1));
    const Tensor k_pages(kv, RandomFloats(pool, 2));
    const Tensor v_pages(kv, RandomFloats(pool, 3));
    const auto norm = RandomFloats(2 * dim, 4);
    const Angles angles(rows, dim / 4);
    bool want_pages = false;
    const auto run = [&, in = in, out = out, dim = dim](DeviceArena& arena) {
      PagedAttentionArgs args;
      args.qkv = arena.Put(qkv);
      args.qkv_dtype = in;
      args.rows = rows;
      args.num_heads = heads;
      args.num_kv_heads = kv_heads;
      args.head_dim = dim;
      args.q_norm = arena.Put(norm);
      args.k_norm = args.q_norm + dim;
      args.eps = 1e-6f;
      args.rope = angles.Put(arena);
      args.segments = arena.Put(host);
      args.segments.page_table = arena.Put(table);
      args.segments.page_stride = max_pages;
      args.k_pages = arena.Put(k_pages);
      args.v_pages = arena.Put(v_pages);
      args.kv_dtype = kv;
      args.out =
          arena.Put(Tensor(out, std::vector<float>(rows * heads * dim, 7)));
      args.out_dtype = out;
      arena.backend().PagedAttention(args);
      if (!want_pages) {
        return arena.GetFloats(args.out, rows * heads * dim, out);
      }
      std::vector<float> all = arena.GetFloats(args.k_pages, pool, kv);
      const auto v = arena.GetFloats(args.v_pages, pool, kv);
      all.insert(all.end(), v.begin(), v.end());
      return all;
    };
    SCOPED_TRACE(testing::Message() << rows << " rows, " << heads << " heads, "
                                    << kv_heads << " KV heads");
    ExpectSame(run, Tolerance(out));
    want_pages = true;
    ExpectSame(run, Tolerance(kv) / 10);
  }
};

TEST_P(PagedCudaTest, MixedStepsAgree) {
  for (const auto& [heads, kv_heads] :
       {std::pair{4, 2}, {3, 1}, {8, 2}, {8, 1}, {32, 4}}) {
    Compare(MixedSegments(), kRows, heads, kv_heads, 5);
  }
}

TEST_P(PagedCudaTest, LongContextsThatAreSplitAgree) {
  for (int rows : {1, 3, 9, 17}) {
    SegmentList list;
    for (int i = 0; i < rows; ++i) {
      list.Add({i, 1, 40 + 73 * i, -1, -1, i}, true);
    }
    Compare(list, rows, 8, 1, 25);
  }
  SegmentList one;
  one.Add({0, 1, 5000, -1, -1, 0}, true);
  Compare(one, 1, 16, 2, 80);
}
INSTANTIATE_TEST_SUITE_P(All, PagedCudaTest, testing::ValuesIn(kCases),
                         NameOfCase);

}  // namespace
}  // namespace ring
