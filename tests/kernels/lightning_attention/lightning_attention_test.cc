// Against the closed form in double,
//   o_t = D^-0.5 (sum_{j<=t} lambda^(t-j) (q_t . k_j) v_j
//                 + lambda^(t+1) q_t S_in),
// which is neither of the two forms that the op computes.
#include "kernels/lightning_attention/lightning_attention.h"

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/tensor_support.h"

namespace ring {
namespace {

constexpr float kEps = 1e-6f;
constexpr int kSlots = 4;
constexpr float kUntouched = -77.0f;

struct Shape {
  int heads = 4;
  int dim = 16;
  int half = 4;
  int groups = 2;
  bool silu = false;
  bool qk_norm = true;
  DType dtype = DType::kFloat32;
};

// Inputs of `rows` consecutive rows of one sequence and the buffers of a step.
struct Problem {
  Problem(const Shape& s, int rows, int first_position, uint32_t seed = 1)
      : shape(s),
        rows(rows),
        width(s.heads * s.dim),
        qkv(s.dtype, RandomFloats(rows * 3 * width, seed)),
        gate(s.dtype, RandomFloats(rows * width, seed + 1)),
        q_norm(RandomFloats(s.dim, 3)),
        k_norm(RandomFloats(s.dim, 4)),
        g_norm(RandomFloats(width, 5)),
        states(RandomFloats(int64_t{kSlots} * width * s.dim, 6)),
        cos(rows * s.half),
        sin(rows * s.half),
        out(s.dtype, std::vector<float>(rows * width, kUntouched)),
        sum_of_squares(rows, kUntouched),
        workspace(LightningWorkspaceFloats(rows, s.heads, s.dim)) {
    for (int h = 0; h < s.heads; ++h) {
      rates.push_back(0.9f * std::pow(0.3f, h));
    }
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < s.half; ++i) {
        const double angle = (first_position + r) * std::pow(100.0, -i / 4.0);
        cos[r * s.half + i] = std::cos(angle);
        sin[r * s.half + i] = std::sin(angle);
      }
    }
  }

  LightningAttentionArgs Args(const SegmentList& segments) {
    LightningAttentionArgs args;
    args.qkv = qkv.data();
    args.gate = gate.data();
    args.qkv_dtype = shape.dtype;
    args.rows = rows;
    args.num_heads = shape.heads;
    args.head_dim = shape.dim;
    args.silu = shape.silu;
    args.q_norm = shape.qk_norm ? q_norm.data() : nullptr;
    args.k_norm = shape.qk_norm ? k_norm.data() : nullptr;
    args.eps = kEps;
    args.rope = {cos.data(), sin.data(), shape.half};
    args.decay_rates = rates.data();
    args.segments = segments.View();
    args.states = states.data();
    args.g_norm = g_norm.data();
    args.groups = shape.groups;
    args.sum_of_squares = sum_of_squares.data();
    args.out = out.data();
    args.out_dtype = shape.dtype;
    args.workspace = workspace.data();
    return args;
  }

  void Run(const SegmentList& segments, int threads = 1) {
    ThreadPool pool(threads);
    cpu::LightningAttention(Args(segments), &pool);
  }

  std::vector<float> State(int slot) const {
    const int64_t n = int64_t{width} * shape.dim;
    return {states.begin() + slot * n, states.begin() + (slot + 1) * n};
  }

  Shape shape;
  int rows;
  int width;
  Tensor qkv, gate;
  std::vector<float> q_norm, k_norm, g_norm, rates, states, cos, sin;
  Tensor out;
  std::vector<float> sum_of_squares, workspace;
};

struct Expected {
  std::vector<double> out;             // [rows, width]
  std::vector<double> sum_of_squares;  // [rows]
  std::vector<double> state;           // [heads, dim, dim]
};

double Silu(double x) { return x / (1 + std::exp(-x)); }

// Head `head` of part 0, 1 or 2 (q, k, v) of one row, ready for attention.
std::vector<double> PreparedHead(const Problem& p, int row, int part,
                                 int head) {
  const int dim = p.shape.dim;
  const int half = p.shape.half;
  std::vector<double> x(dim);
  double squares = 0;
  for (int i = 0; i < dim; ++i) {
    x[i] = p.qkv[(int64_t{row} * 3 + part) * p.width + head * dim + i];
    if (p.shape.silu) x[i] = Silu(x[i]);
    squares += x[i] * x[i];
  }
  if (part == 2) return x;
  const std::vector<float>& weight = part == 0 ? p.q_norm : p.k_norm;
  if (p.shape.qk_norm) {
    for (int i = 0; i < dim; ++i) {
      x[i] = x[i] / std::sqrt(squares / dim + double{kEps}) * weight[i];
    }
  }
  std::vector<double> y = x;
  for (int i = 0; i < half; ++i) {
    const double c = p.cos[row * half + i];
    const double s = p.sin[row * half + i];
    y[i] = x[i] * c - x[i + half] * s;
    y[i + half] = x[i + half] * c + x[i] * s;
  }
  return y;
}

// All rows as one sequence whose state before the first row is `state`
// ([heads, dim, dim], empty: zero).
Expected Reference(const Problem& p, const std::vector<float>& state) {
  const int dim = p.shape.dim;
  Expected e;
  std::vector<double> o(p.rows * p.width);
  e.state.assign(p.width * dim, 0.0);
  for (int h = 0; h < p.shape.heads; ++h) {
    const double rate = p.rates[h];
    std::vector<std::vector<double>> q, k, v;
    for (int r = 0; r < p.rows; ++r) {
      q.push_back(PreparedHead(p, r, 0, h));
      k.push_back(PreparedHead(p, r, 1, h));
      v.push_back(PreparedHead(p, r, 2, h));
    }
    auto s_in = [&](int i, int j) {
      return state.empty() ? 0.0 : double{state[(h * dim + i) * dim + j]};
    };
    for (int t = 0; t < p.rows; ++t) {
      double* const row = &o[t * p.width + h * dim];
      for (int j = 0; j <= t; ++j) {
        double dot = 0;
        for (int i = 0; i < dim; ++i) dot += q[t][i] * k[j][i];
        const double weight = dot * std::exp(-rate * (t - j)) / std::sqrt(dim);
        for (int i = 0; i < dim; ++i) row[i] += weight * v[j][i];
      }
      const double carried = std::exp(-rate * (t + 1)) / std::sqrt(dim);
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) row[j] += carried * q[t][i] * s_in(i, j);
      }
    }
    for (int i = 0; i < dim; ++i) {
      for (int j = 0; j < dim; ++j) {
        double sum = std::exp(-rate * p.rows) * s_in(i, j);
        for (int t = 0; t < p.rows; ++t) {
          sum += std::exp(-rate * (p.rows - 1 - t)) * k[t][i] * v[t][j];
        }
        e.state[(h * dim + i) * dim + j] = sum;
      }
    }
  }

  const int groups = p.shape.groups == 0 ? 1 : p.shape.groups;
  const int group_width = p.width / groups;
  e.out.resize(o.size());
  for (int r = 0; r < p.rows; ++r) {
    for (int g = 0; g < groups; ++g) {
      double squares = 0;
      for (int i = g * group_width; i < (g + 1) * group_width; ++i) {
        squares += o[r * p.width + i] * o[r * p.width + i];
      }
      if (p.shape.groups == 0) e.sum_of_squares.push_back(squares);
      const double rms = p.shape.groups == 0
                             ? 1.0
                             : std::sqrt(squares / group_width + double{kEps});
      for (int i = g * group_width; i < (g + 1) * group_width; ++i) {
        const double gate = p.gate[r * p.width + i];
        e.out[r * p.width + i] =
            o[r * p.width + i] / rms * p.g_norm[i] / (1 + std::exp(-gate));
      }
    }
  }
  return e;
}

// fp32 sums of up to a few hundred terms against double: a few 1e-6. With bf16
// storage the output itself is rounded to 2^-9.
double Tolerance(DType dtype) { return dtype == DType::kFloat32 ? 1e-5 : 4e-3; }

void ExpectMatches(const Problem& p, const Expected& e, int state_slot) {
  EXPECT_LT(RelativeL2(p.out, e.out, e.out.size()), Tolerance(p.shape.dtype));
  // bf16 widens exactly, so the state is as good as with fp32 inputs.
  EXPECT_LT(RelativeL2(p.State(state_slot), e.state, e.state.size()), 1e-5);
  if (p.shape.groups == 0) {
    EXPECT_LT(RelativeL2(p.sum_of_squares, e.sum_of_squares, p.rows), 1e-5);
  } else {
    EXPECT_THAT(p.sum_of_squares, testing::Each(kUntouched));
  }
}

struct Case {
  const char* name;
  Shape shape;
};

class LightningAttentionTest
    : public testing::TestWithParam<std::tuple<Case, int>> {};

TEST_P(LightningAttentionTest, DecodeFollowsTheClosedForm) {
  const auto& [c, rows] = GetParam();
  Problem p(c.shape, rows, 5);
  SegmentList segments;
  segments.Add({0, rows, 5, /*state_in=*/2, /*state_out=*/2}, true);
  const Expected e = Reference(p, p.State(2));
  p.Run(segments);
  ExpectMatches(p, e, 2);
}

TEST_P(LightningAttentionTest, PromptFollowsTheClosedForm) {
  const auto& [c, rows] = GetParam();
  Problem p(c.shape, rows, 61);
  SegmentList segments;
  segments.Add({0, rows, 61, /*state_in=*/1, /*state_out=*/3});
  const Expected e = Reference(p, p.State(1));
  const std::vector<float> untouched = p.State(1);
  p.Run(segments, 2);
  ExpectMatches(p, e, 3);
  EXPECT_EQ(p.State(1), untouched);
}

TEST_P(LightningAttentionTest, StartsFromZeroWithoutStateIn) {
  const auto& [c, rows] = GetParam();
  for (bool decode : {false, true}) {
    Problem p(c.shape, rows, 0);
    SegmentList segments;
    segments.Add({0, rows, 0, /*state_in=*/-1, /*state_out=*/0}, decode);
    const Expected e = Reference(p, {});
    p.Run(segments);
    ExpectMatches(p, e, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LightningAttentionTest,
    testing::Combine(
        testing::Values(
            Case{"Small", {}}, Case{"RingTiny", {4, 64, 16, 2}},
            Case{"RingTinyTp2", {2, 64, 16, 1}},
            Case{"RingTinyTp4PartOfAGroup", {1, 64, 16, 0}},
            Case{"FlashHead", {2, 128, 32, 1}}, Case{"OddSizes", {3, 10, 2, 3}},
            Case{"Silu", {2, 16, 4, 1, true}},
            Case{"NoQkNorm", {2, 16, 4, 1, false, false}},
            Case{"BFloat16", {4, 64, 16, 2, false, true, DType::kBFloat16}}),
        testing::Values(1, 3, 70, 133)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) + "Rows" +
             std::to_string(std::get<1>(info.param));
    });

// Runs rows [begin, end) of `whole` as a step of their own on `states`.
void RunPart(Problem* whole, int begin, int end, std::vector<float>* states,
             bool decode, std::vector<float>* out) {
  SegmentList segments;
  segments.Add({begin, end - begin, begin, begin == 0 ? -1 : 1, 1}, decode);
  std::swap(whole->states, *states);
  whole->Run(segments);
  std::swap(whole->states, *states);
  for (int64_t i = int64_t{begin} * whole->width;
       i < int64_t{end} * whole->width; ++i) {
    (*out)[i] = whole->out[i];
  }
}

TEST(LightningAttentionSplitTest, PromptCutAnywhereEqualsTheWhole) {
  constexpr int kRows = 140;
  Problem p({2, 32, 8, 1}, kRows, 0);
  const std::vector<float> fresh = p.states;
  std::vector<float> states = fresh;
  std::vector<float> whole(kRows * p.width);
  RunPart(&p, 0, kRows, &states, false, &whole);
  const std::vector<float> whole_states = states;
  for (int cut = 1; cut < kRows; ++cut) {
    states = fresh;
    std::vector<float> parts(whole.size());
    RunPart(&p, 0, cut, &states, false, &parts);
    RunPart(&p, cut, kRows, &states, false, &parts);
    if (cut % 64 == 0) {
      EXPECT_EQ(parts, whole) << cut;
      EXPECT_EQ(states, whole_states) << cut;
    } else {
      EXPECT_LT(RelativeL2(parts, whole, whole.size()), 2e-6) << cut;
      EXPECT_LT(RelativeL2(states, whole_states, states.size()), 2e-6) << cut;
    }
  }
}

TEST(LightningAttentionSplitTest, RowByRowDecodeEqualsThePrompt) {
  constexpr int kRows = 100;
  Problem p({2, 32, 8, 1}, kRows, 0);
  const std::vector<float> fresh = p.states;
  std::vector<float> states = fresh;
  std::vector<float> prompt(kRows * p.width);
  RunPart(&p, 0, kRows, &states, false, &prompt);
  states = fresh;
  std::vector<float> decoded(prompt.size());
  for (int row = 0; row < kRows; ++row) {
    RunPart(&p, row, row + 1, &states, true, &decoded);
  }
  EXPECT_LT(RelativeL2(decoded, prompt, prompt.size()), 2e-6);
}

TEST(LightningAttentionBatchTest, SequencesAndPaddingDoNotTouchEachOther) {
  const Shape shape = {2, 16, 4, 2};
  constexpr int kRows = 90;
  // Rows: decode 0..1 | padding 2 | prompt 3..82 | padding 83..89.
  Problem p(shape, kRows, 0);
  const std::vector<float> before = p.states;
  SegmentList segments;
  segments.Add({0, 1, 0, 0, 0}, true);
  segments.Add({1, 1, 1, 3, 1}, true);
  segments.AddPadding(true);
  segments.Add({3, 80, 3, -1, 2});
  segments.AddPadding();
  p.Run(segments, 3);
  EXPECT_EQ(p.State(3), std::vector<float>(before.end() - p.width * shape.dim,
                                           before.end()));
  for (int row = 0; row < kRows; ++row) {
    const bool padding = row == 2 || row >= 83;
    for (int i = 0; i < p.width; ++i) {
      EXPECT_EQ(p.out[row * p.width + i] == kUntouched, padding) << row;
    }
  }

  // Each alone gives the same bits.
  struct Alone {
    SegmentList::Segment segment;
    bool decode;
  };
  for (const Alone& alone :
       {Alone{{0, 1, 0, 0, 0}, true}, Alone{{1, 1, 1, 3, 1}, true},
        Alone{{3, 80, 3, -1, 2}, false}}) {
    Problem q(shape, kRows, 0);
    SegmentList one;
    one.Add(alone.segment, alone.decode);
    q.Run(one);
    EXPECT_EQ(q.State(alone.segment.state_out),
              p.State(alone.segment.state_out));
    for (int i = alone.segment.row_begin * p.width;
         i < (alone.segment.row_begin + alone.segment.row_count) * p.width;
         ++i) {
      EXPECT_EQ(q.out[i], p.out[i]);
    }
  }
}

TEST(LightningAttentionBatchTest, RunsWithoutSegments) {
  Problem p({}, 2, 0);
  p.Run(SegmentList());
  EXPECT_EQ(p.out[0], kUntouched);
}

TEST(LightningAttentionRangeTest, FastDecayOverManyRowsStaysFinite) {
  // exp(s * 64) would overflow fp32; differences of row numbers do not.
  Problem p({1, 16, 4, 1}, 128, 0);
  p.rates[0] = 5.0f;
  SegmentList segments;
  segments.Add({0, 128, 0, 0, 0});
  const Expected e = Reference(p, p.State(0));
  p.Run(segments);
  ExpectMatches(p, e, 0);
}

}  // namespace
}  // namespace ring
