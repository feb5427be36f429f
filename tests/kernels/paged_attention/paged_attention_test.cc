// Against softmax attention written down directly in double over a cache of
// plain vectors.
#include "kernels/paged_attention/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/tensor_support.h"

namespace ring {
namespace {

constexpr float kEps = 1e-6f;
constexpr float kUntouched = -77.0f;

struct Shape {
  int heads = 4;
  int kv_heads = 2;
  int dim = 16;
  int half = 4;
  bool qk_norm = true;
  DType dtype = DType::kFloat32;     // of qkv and out
  DType kv_dtype = DType::kFloat32;  // of the pages
  int page_stride = 8;               // pages a sequence, of 64 tokens
};

// The rows of one step and a page pool. Two sequences: page row 0 and 1, with
// pages that are neither in order nor next to each other.
struct Problem {
  Problem(const Shape& s, int rows, int first_position, uint32_t seed = 1)
      : shape(s),
        rows(rows),
        qkv_width((s.heads + 2 * s.kv_heads) * s.dim),
        qkv(s.dtype, RandomFloats(rows * qkv_width, seed)),
        q_norm(RandomFloats(s.dim, 3)),
        k_norm(RandomFloats(s.dim, 4)),
        k_pages(s.kv_dtype,
                RandomFloats(PageElements() * 3 * s.page_stride, 5)),
        v_pages(s.kv_dtype,
                RandomFloats(PageElements() * 3 * s.page_stride, 6)),
        cos(rows * s.half),
        sin(rows * s.half),
        out(s.dtype, std::vector<float>(rows * s.heads * s.dim, kUntouched)) {
    for (int i = 0; i < 2 * s.page_stride; ++i) {
      page_table.push_back((i * 7 + 3) % (3 * s.page_stride));
    }
    SetPositions(0, rows, first_position);
  }

  int64_t PageElements() const {
    return int64_t{shape.kv_heads} * kPageTokens * shape.dim;
  }

  // Gives rows [begin, begin + count) the angles of consecutive positions.
  void SetPositions(int begin, int count, int first_position) {
    for (int r = 0; r < count; ++r) {
      for (int i = 0; i < shape.half; ++i) {
        const double angle = (first_position + r) * std::pow(100.0, -i / 4.0);
        cos[(begin + r) * shape.half + i] = std::cos(angle);
        sin[(begin + r) * shape.half + i] = std::sin(angle);
      }
    }
  }

  void Run(const SegmentList& segments, int threads = 1) {
    PagedAttentionArgs args;
    args.qkv = qkv.data();
    args.qkv_dtype = shape.dtype;
    args.rows = rows;
    args.num_heads = shape.heads;
    args.num_kv_heads = shape.kv_heads;
    args.head_dim = shape.dim;
    args.q_norm = shape.qk_norm ? q_norm.data() : nullptr;
    args.k_norm = shape.qk_norm ? k_norm.data() : nullptr;
    args.eps = kEps;
    args.rope = {cos.data(), sin.data(), shape.half};
    args.segments = segments.View();
    args.segments.page_table = page_table.data();
    args.segments.page_stride = shape.page_stride;
    args.k_pages = k_pages.data();
    args.v_pages = v_pages.data();
    args.kv_dtype = shape.kv_dtype;
    args.out = out.data();
    args.out_dtype = shape.dtype;
    ThreadPool pool(threads);
    cpu::PagedAttention(args, &pool);
  }

  // Index of the first element of a token's entry in the pages.
  int64_t KvIndex(int page_row, int position, int kv_head) const {
    const int page = page_table[page_row * shape.page_stride + position / 64];
    return ((int64_t{page} * shape.kv_heads + kv_head) * 64 + position % 64) *
           shape.dim;
  }

  Shape shape;
  int rows;
  int qkv_width;
  Tensor qkv;
  std::vector<float> q_norm, k_norm;
  Tensor k_pages, v_pages;
  std::vector<float> cos, sin;
  std::vector<int32_t> page_table;
  Tensor out;
};

// Head number `head` among the Q, K and V heads of a row.
std::vector<double> PreparedHead(const Problem& p, int row, int head) {
  const Shape& s = p.shape;
  std::vector<double> x(s.dim);
  for (int i = 0; i < s.dim; ++i) {
    x[i] = p.qkv[int64_t{row} * p.qkv_width + head * s.dim + i];
  }
  if (head >= s.heads + s.kv_heads) return x;
  if (s.qk_norm) {
    const std::vector<float>& weight = head < s.heads ? p.q_norm : p.k_norm;
    const double squares =
        std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
    for (int i = 0; i < s.dim; ++i) {
      x[i] = x[i] / std::sqrt(squares / s.dim + double{kEps}) * weight[i];
    }
  }
  std::vector<double> y = x;
  for (int i = 0; i < s.half; ++i) {
    const double c = p.cos[row * s.half + i];
    const double sine = p.sin[row * s.half + i];
    y[i] = x[i] * c - x[i + s.half] * sine;
    y[i + s.half] = x[i + s.half] * c + x[i] * sine;
  }
  return y;
}

double Stored(DType dtype, double x) {
  const float f = static_cast<float>(x);
  return dtype == DType::kBFloat16 ? ToFloat(ToBFloat16(f)) : f;
}

// Outputs of all rows as one sequence of page row 0 that starts at
// `first_position`; earlier tokens are what the pages hold now.
std::vector<double> Reference(const Problem& p, int first_position) {
  const Shape& s = p.shape;
  std::vector<double> out(int64_t{p.rows} * s.heads * s.dim);
  for (int h = 0; h < s.heads; ++h) {
    const int kv = h / (s.heads / s.kv_heads);
    std::vector<std::vector<double>> keys, values;
    for (int t = 0; t < first_position; ++t) {
      std::vector<double> k(s.dim), v(s.dim);
      for (int i = 0; i < s.dim; ++i) {
        k[i] = p.k_pages[p.KvIndex(0, t, kv) + i];
        v[i] = p.v_pages[p.KvIndex(0, t, kv) + i];
      }
      keys.push_back(k);
      values.push_back(v);
    }
    for (int r = 0; r < p.rows; ++r) {
      keys.push_back(PreparedHead(p, r, s.heads + kv));
      values.push_back(PreparedHead(p, r, s.heads + s.kv_heads + kv));
      for (double& x : keys.back()) x = Stored(s.kv_dtype, x);
      for (double& x : values.back()) x = Stored(s.kv_dtype, x);
      const std::vector<double> q = PreparedHead(p, r, h);
      std::vector<double> score;
      for (const std::vector<double>& k : keys) {
        score.push_back(std::inner_product(q.begin(), q.end(), k.begin(), 0.0) /
                        std::sqrt(s.dim));
      }
      const double max = *std::max_element(score.begin(), score.end());
      double sum = 0;
      for (double& x : score) sum += x = std::exp(x - max);
      for (size_t j = 0; j < keys.size(); ++j) {
        for (int i = 0; i < s.dim; ++i) {
          out[(int64_t{r} * s.heads + h) * s.dim + i] +=
              score[j] / sum * values[j][i];
        }
      }
    }
  }
  return out;
}

// fp32 arithmetic against double. Rounding k to bf16 may differ in the last
// bit where the fp32 value sits next to a tie; bf16 outputs round to 2^-9.
double Tolerance(const Shape& s) {
  if (s.dtype == DType::kBFloat16) return 4e-3;
  return s.kv_dtype == DType::kBFloat16 ? 3e-4 : 3e-6;
}

struct Case {
  const char* name;
  Shape shape;
};

class PagedAttentionTest
    : public testing::TestWithParam<std::tuple<Case, int, int>> {};

TEST_P(PagedAttentionTest, FollowsTheDefinition) {
  const auto& [c, rows, first_position] = GetParam();
  for (bool decode : {false, true}) {
    Problem p(c.shape, rows, first_position);
    SegmentList segments;
    segments.Add({0, rows, first_position, -1, -1, /*page_row=*/0}, decode);
    const std::vector<double> expected = Reference(p, first_position);
    p.Run(segments, 2);
    EXPECT_LT(RelativeL2(p.out, expected, expected.size()), Tolerance(p.shape))
        << (decode ? "decode" : "prompt");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, PagedAttentionTest,
    testing::Combine(
        testing::Values(
            Case{"Small", {}}, Case{"RingTiny", {4, 2, 64, 16}},
            Case{"RingTinyTp4", {1, 1, 64, 16}},
            Case{"FlashTp4", {8, 1, 128, 32}}, Case{"OddSizes", {6, 2, 10, 2}},
            Case{"NoQkNorm", {2, 2, 16, 4, false}},
            Case{"BFloat16Pages",
                 {4, 2, 64, 16, true, DType::kFloat32, DType::kBFloat16}},
            Case{"AllBFloat16",
                 {4, 2, 64, 16, true, DType::kBFloat16, DType::kBFloat16}}),
        testing::Values(1, 3, 70), testing::Values(0, 63, 130)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) + "Rows" +
             std::to_string(std::get<1>(info.param)) + "At" +
             std::to_string(std::get<2>(info.param));
    });

// Outputs of a prompt of all rows that runs as the given parts.
std::vector<float> RunInParts(const Problem& start,
                              const std::vector<int>& ends, bool decode) {
  Problem p = start;
  int begin = 0;
  for (int end : ends) {
    SegmentList segments;
    segments.Add({begin, end - begin, begin, -1, -1, 0}, decode);
    p.Run(segments);
    begin = end;
  }
  std::vector<float> out(p.out.size());
  for (int64_t i = 0; i < p.out.size(); ++i) out[i] = p.out[i];
  return out;
}

TEST(PagedAttentionSplitTest, PromptCutAnywhereGivesTheSameBits) {
  constexpr int kRows = 135;
  const Problem p({4, 2, 16, 4}, kRows, 0);
  const std::vector<float> whole = RunInParts(p, {kRows}, false);
  for (int cut = 1; cut < kRows; ++cut) {
    EXPECT_EQ(RunInParts(p, {cut, kRows}, false), whole) << cut;
  }
}

TEST(PagedAttentionSplitTest, RowByRowDecodeEqualsThePrompt) {
  constexpr int kRows = 135;
  const Problem p({4, 2, 16, 4}, kRows, 0);
  const std::vector<float> whole = RunInParts(p, {kRows}, false);
  std::vector<int> ends(kRows);
  std::iota(ends.begin(), ends.end(), 1);
  const std::vector<float> decoded = RunInParts(p, ends, true);
  EXPECT_LT(RelativeL2(decoded, whole, whole.size()), 2e-6);
}

TEST(PagedAttentionBatchTest, SequencesAndPaddingDoNotTouchEachOther) {
  constexpr int kRows = 90;
  // Rows: decode 0 (sequence 1) | padding 1..2 | prompt 3..82 (sequence 0) |
  // padding 83..89.
  Problem p({4, 2, 16, 4}, kRows, 0);
  p.SetPositions(0, 1, 150);
  p.SetPositions(3, 80, 20);
  const Problem before = p;
  SegmentList segments;
  const SegmentList::Segment decode = {0, 1, 150, -1, -1, 1};
  const SegmentList::Segment prompt = {3, 80, 20, -1, -1, 0};
  segments.Add(decode, true);
  segments.AddPadding(true);
  segments.Add(prompt);
  segments.AddPadding();
  p.Run(segments, 3);

  std::vector<bool> written(p.k_pages.size());
  for (int head = 0; head < 2; ++head) {
    for (int i = 0; i < 16; ++i) {
      written[p.KvIndex(1, 150, head) + i] = true;
      for (int t = 20; t < 100; ++t) written[p.KvIndex(0, t, head) + i] = true;
    }
  }
  for (int64_t i = 0; i < p.k_pages.size(); ++i) {
    EXPECT_EQ(p.k_pages[i] != before.k_pages[i], written[i]) << i;
    EXPECT_EQ(p.v_pages[i] != before.v_pages[i], written[i]) << i;
  }
  const int width = 4 * 16;
  for (int row = 0; row < kRows; ++row) {
    const bool padding = row == 1 || row == 2 || row >= 83;
    for (int i = 0; i < width; ++i) {
      EXPECT_EQ(p.out[row * width + i] == kUntouched, padding) << row;
    }
  }

  // Each alone gives the same bits.
  for (bool is_decode : {true, false}) {
    const SegmentList::Segment& segment = is_decode ? decode : prompt;
    Problem q = before;
    SegmentList one;
    one.Add(segment, is_decode);
    q.Run(one);
    for (int i = segment.row_begin * width;
         i < (segment.row_begin + segment.row_count) * width; ++i) {
      EXPECT_EQ(q.out[i], p.out[i]);
    }
  }
}

// Long contexts of decode rows are split over pages.
TEST(PagedAttentionLongContextTest, DecodeFollowsTheDefinition) {
  Shape shape = {4, 2, 16, 4};
  shape.page_stride = 40;
  // Four rows; the last split holds 0 to 3 of their tokens.
  for (int first_position : {1020, 1023, 1024, 2045, 2500}) {
    Problem p(shape, 4, first_position);
    SegmentList segments;
    segments.Add({0, 4, first_position, -1, -1, 0}, /*decode=*/true);
    const std::vector<double> expected = Reference(p, first_position);
    p.Run(segments, 3);
    EXPECT_LT(RelativeL2(p.out, expected, expected.size()), 3e-6)
        << first_position;
    Problem q(shape, 4, first_position);
    q.Run(segments, 1);
    for (int64_t i = 0; i < p.out.size(); ++i) EXPECT_EQ(p.out[i], q.out[i]);
  }
}

TEST(PagedAttentionBatchTest, RunsWithoutSegments) {
  Problem p({}, 2, 0);
  p.Run(SegmentList());
  EXPECT_EQ(p.out[0], kUntouched);
}

TEST(PagedAttentionRangeTest, LargeScoresDoNotOverflow) {
  Problem p({1, 1, 16, 4, /*qk_norm=*/false}, 70, 0);
  for (int64_t i = 0; i < p.qkv.size(); ++i) p.qkv.Set(i, p.qkv[i] * 30);
  SegmentList segments;
  segments.Add({0, 70, 0, -1, -1, 0});
  const std::vector<double> expected = Reference(p, 0);
  p.Run(segments);
  // Scores of several hundred carry fp32 errors of 1e-4 into the exponent.
  EXPECT_LT(RelativeL2(p.out, expected, expected.size()), 1e-3);
}

}  // namespace
}  // namespace ring
