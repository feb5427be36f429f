// CPU = CUDA for both attention ops; prompt = decode; a row alone = in a batch;
// the state of a long sequence against double.
#include <algorithm>
#include <functional>
#include <limits>

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
                                {DType::kFloat32, DType::kBFloat16, 64},
                                {DType::kFloat32, DType::kBFloat16, 128},
                                {DType::kBFloat16, DType::kBFloat16, 128}};

// The segments of a step, and how many rows and slots they take.
struct Step {
  SegmentList list;
  int64_t rows = 0;
  int slots = 0;
};

// Two decode segments (one of two rows), padding, three prompt segments and
// two padding rows behind them.
Step MixedStep() {
  Step step;
  step.list.Add({0, 1, 90, 0, 0, 0}, true);
  step.list.Add({1, 2, 130, 1, 2, 1}, true);
  step.list.AddPadding(true);
  step.list.Add({3, 5, 0, -1, 3, 2});
  step.list.Add({8, 70, 61, 4, 4, 3});
  step.list.Add({78, 1, 0, -1, 5, 4});
  step.list.AddPadding();
  step.rows = 1 + 2 + 5 + 70 + 1 + 2;
  step.slots = 6;
  return step;
}

// Prompt segments alone, of these lengths: in place, to another slot and from a
// zero state in turn.
Step PromptStep(const std::vector<int>& lengths) {
  Step step;
  for (int length : lengths) {
    const int i = step.slots;
    const int state_in[] = {i, i + 1, -1};
    step.list.Add({static_cast<int>(step.rows), length, 17 * (i / 2),
                   state_in[i / 2 % 3], i, i / 2});
    step.rows += length;
    step.slots += 2;
  }
  return step;
}

// Prompt rows of bf16 results multiply bf16 factors: q, k, v, the scores and
// the state are rounded besides the result, six roundings of at most 2^-9.
double PromptTolerance(DType out) {
  return out == DType::kBFloat16 ? 6e-3 : Tolerance(out);
}

struct LightningVariant {
  int heads, groups;
  bool silu, norm;
  int half;
};

class LightningCudaTest : public testing::TestWithParam<AttentionCase> {
 protected:
  // Runs `step` on both backends: outputs, states and sums of squares agree.
  void Compare(const Step& step, const LightningVariant& variant,
               double tolerance) {
    const auto [in, out, dim] = GetParam();
    const int64_t width = int64_t{variant.heads} * dim;
    const Tensor qkv(in, RandomFloats(step.rows * 3 * width, 1));
    const Tensor gate(in, RandomFloats(step.rows * width, 2));
    const auto norm = RandomFloats(2 * dim + width, 3);
    std::vector<float> rates;
    for (int h = 0; h < variant.heads; ++h) rates.push_back(0.01f + 0.3f * h);
    const auto states = RandomFloats(step.slots * width * dim, 4);
    const Angles angles(step.rows, variant.half);
    bool want_states = false;
    const auto run = [&, in = in, out = out, dim = dim](DeviceArena& arena) {
      LightningAttentionArgs args;
      args.qkv = arena.Put(qkv);
      args.gate = arena.Put(gate);
      args.qkv_dtype = in;
      args.rows = step.rows;
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
      args.segments = arena.Put(step.list.View());
      args.states = arena.Put(states);
      args.groups = variant.groups;
      args.sum_of_squares = arena.Put(std::vector<float>(step.rows, 0.0f));
      args.out =
          arena.Put(Tensor(out, std::vector<float>(step.rows * width, 7)));
      args.out_dtype = out;
      args.workspace = arena.Make<float>(
          LightningWorkspaceFloats(step.rows, variant.heads, dim));
      arena.backend().LightningAttention(args);
      if (want_states) return arena.Get(args.states, step.slots * width * dim);
      std::vector<float> all =
          arena.GetFloats(args.out, step.rows * width, out);
      const auto squares = arena.Get(args.sum_of_squares, step.rows);
      all.insert(all.end(), squares.begin(), squares.end());
      return all;
    };
    SCOPED_TRACE(testing::Message()
                 << step.rows << " rows, " << variant.heads << " heads");
    ExpectSame(run, tolerance);
    want_states = true;
    ExpectSame(run, Tolerance(DType::kFloat32));
  }
};

TEST_P(LightningCudaTest, OutputsAndStatesAgree) {
  const int dim = GetParam().head_dim;
  for (const LightningVariant& variant :
       {LightningVariant{4, 2, false, true, dim / 4},
        {3, 1, true, false, dim / 2},
        {4, 0, false, true, 0},
        {32, 1, false, true, dim / 4},
        {32, 4, false, true, dim / 4}}) {
    Compare(MixedStep(), variant, Tolerance(GetParam().out));
  }
}

TEST_P(LightningCudaTest, ChunksAndBlocksOfAnyLengthAgree) {
  const int dim = GetParam().head_dim;
  const double tolerance = PromptTolerance(GetParam().out);
  const int block = LightningBlockRows(2);
  for (const std::vector<int>& lengths :
       {std::vector<int>{1},
        {63, 64, 65, 0, 1},
        {block, block + 1},
        {3, 2 * block + 77, 1, 2 * block, block + 64}}) {
    Compare(PromptStep(lengths), {2, 1, false, true, dim / 4}, tolerance);
  }
  const Step cut = PromptStep({LightningBlockRows(9) * 2 + 5});
  Compare(cut, {9, 3, true, true, dim / 2}, tolerance);
  Compare(cut, {9, 1, false, true, dim / 4}, tolerance);
  Compare(cut, {9, 3, false, true, dim / 2}, tolerance);
}
INSTANTIATE_TEST_SUITE_P(All, LightningCudaTest, testing::ValuesIn(kCases),
                         NameOfCase);

// Lightning heads of 128 without norm, rotation or gate, on the GPU: what comes
// out is o / rms(o) / 2 over all heads, and the states.
class LightningSequence {
 public:
  LightningSequence(std::vector<float> qkv, std::vector<float> rates)
      : rates_(std::move(rates)),
        width_(static_cast<int64_t>(rates_.size()) * kDim),
        qkv_(std::move(qkv)),
        arena_(TestGpu()) {
    states_ = arena_.Put(std::vector<float>(width_ * kDim));
  }
  static constexpr int kDim = 128;

  // Outputs of the next `rows` rows, as one segment.
  std::vector<float> Run(int rows, bool decode) {
    DeviceArena arena(TestGpu());
    LightningAttentionArgs args;
    args.qkv = arena.Put(
        std::vector<float>(qkv_.begin() + done_ * 3 * width_,
                           qkv_.begin() + (done_ + rows) * 3 * width_));
    args.gate = arena.Put(std::vector<float>(rows * width_));
    args.rows = rows;
    args.num_heads = static_cast<int>(rates_.size());
    args.head_dim = kDim;
    args.eps = 1e-6f;
    args.decay_rates = arena.Put(rates_);
    SegmentList list;
    list.Add({0, rows, static_cast<int>(done_), done_ == 0 ? -1 : 0, 0, -1},
             decode);
    args.segments = arena.Put(list.View());
    args.states = states_;
    args.g_norm = arena.Put(std::vector<float>(width_, 1.0f));
    BFloat16* const out = arena.Make<BFloat16>(rows * width_);
    args.out = out;
    args.out_dtype = DType::kBFloat16;
    args.workspace =
        arena.Make<float>(LightningWorkspaceFloats(rows, args.num_heads, kDim));
    arena.backend().LightningAttention(args);
    done_ += rows;
    return arena.GetFloats(out, rows * width_, args.out_dtype);
  }
  std::vector<float> States() { return arena_.Get(states_, width_ * kDim); }

 private:
  const std::vector<float> rates_;
  const int64_t width_;
  const std::vector<float> qkv_;
  DeviceArena arena_;
  float* states_ = nullptr;
  int64_t done_ = 0;
};

TEST(LightningCudaSequenceTest, PromptGivesWhatDecodeStepsGive) {
  constexpr int kRows = 150;
  constexpr int kHeads = 3;
  const auto qkv =
      RandomFloats(kRows * 3 * kHeads * LightningSequence::kDim, 5);
  const std::vector<float> rates = {1e-3f, 0.1f, 2.0f};
  LightningSequence whole(qkv, rates);
  LightningSequence cut(qkv, rates);
  LightningSequence decode(qkv, rates);
  const auto outputs = whole.Run(kRows, false);
  std::vector<float> cut_outputs;
  for (int rows : {1, 64, 70, 15}) {
    const auto o = cut.Run(rows, false);
    cut_outputs.insert(cut_outputs.end(), o.begin(), o.end());
  }
  std::vector<float> decode_outputs;
  for (int i = 0; i < kRows; ++i) {
    const auto o = decode.Run(1, true);
    decode_outputs.insert(decode_outputs.end(), o.begin(), o.end());
  }
  const int64_t n = decode_outputs.size();
  EXPECT_LE(RelativeL2(outputs, decode_outputs, n), 4e-3);
  EXPECT_LE(RelativeL2(cut_outputs, decode_outputs, n), 4e-3);
  const auto states = decode.States();
  EXPECT_LE(RelativeL2(whole.States(), states, states.size()), 2e-5);
  EXPECT_LE(RelativeL2(cut.States(), states, states.size()), 2e-5);
}

// The recurrence in double, for one head. Calls take(t, o) after every token.
void RunInDouble(const std::vector<float>& qkv, int64_t rows, int heads,
                 int head, double rate,
                 const std::function<void(int64_t, const double*)>& take,
                 std::vector<double>* state) {
  constexpr int kDim = LightningSequence::kDim;
  const int64_t width = int64_t{heads} * kDim;
  const double decay = std::exp(-rate);
  state->assign(kDim * kDim, 0.0);
  std::vector<double> o(kDim);
  for (int64_t t = 0; t < rows; ++t) {
    const float* const q = qkv.data() + t * 3 * width + head * kDim;
    const float* const k = q + width;
    const float* const v = k + width;
    std::fill(o.begin(), o.end(), 0.0);
    for (int i = 0; i < kDim; ++i) {
      double* const s = state->data() + i * kDim;
      for (int j = 0; j < kDim; ++j) {
        s[j] = decay * s[j] + double{k[i]} * double{v[j]};
        o[j] += double{q[i]} * s[j];
      }
    }
    for (double& x : o) x /= std::sqrt(static_cast<double>(kDim));
    take(t, o.data());
  }
}

// A state that forgets slowly sums 131,072 products: its error must not grow
// with the length, whichever way the tokens come.
TEST(LightningCudaSequenceTest, LongSequenceAgreesWithDouble) {
  constexpr int kRows = 131072;
  constexpr int kLast = 64;  // decode rows at the end
  constexpr int kCompared = 256;
  constexpr int kDim = LightningSequence::kDim;
  const std::vector<float> rates = {1e-5f, 0.02f};
  const int heads = 2;
  const int64_t width = heads * kDim;
  // A long period that no chunk or block divides saves the time to draw.
  const auto drawn = RandomFloats(4999 * 3 * width, 6);
  std::vector<float> qkv(int64_t{kRows} * 3 * width);
  for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = drawn[i % drawn.size()];

  std::vector<double> expected(kCompared * width);
  std::vector<double> expected_states;
  for (int h = 0; h < heads; ++h) {
    std::vector<double> state;
    RunInDouble(
        qkv, kRows, heads, h, rates[h],
        [&](int64_t t, const double* o) {
          const int64_t row = t - (kRows - kCompared);
          if (row >= 0) std::copy_n(o, kDim, &expected[row * width + h * kDim]);
        },
        &state);
    expected_states.insert(expected_states.end(), state.begin(), state.end());
  }
  for (int i = 0; i < kCompared; ++i) {
    double squares = 0;
    for (int j = 0; j < width; ++j) {
      squares += expected[i * width + j] * expected[i * width + j];
    }
    const double scale = 0.5 / std::sqrt(squares / width + 1e-6);
    for (int j = 0; j < width; ++j) expected[i * width + j] *= scale;
  }

  LightningSequence sequence(qkv, rates);
  auto outputs = sequence.Run(100000, false);
  outputs = sequence.Run(kRows - kLast - 100000, false);
  outputs.erase(outputs.begin(), outputs.end() - (kCompared - kLast) * width);
  for (int i = 0; i < kLast; ++i) {
    const auto o = sequence.Run(1, true);
    outputs.insert(outputs.end(), o.begin(), o.end());
  }
  EXPECT_LE(RelativeL2(outputs, expected, expected.size()), 4e-3);
  const auto states = sequence.States();
  EXPECT_LE(RelativeL2(states, expected_states, states.size()), 3e-5);
}

struct PagedVariant {
  int heads, kv_heads;
};

class PagedCudaTest : public testing::TestWithParam<AttentionCase> {
 protected:
  void Compare(const Step& step, const PagedVariant& variant,
               int64_t max_pages) {
    const auto [in, out, dim] = GetParam();
    const auto [heads, kv_heads] = variant;
    const int64_t width = int64_t{heads + 2 * kv_heads} * dim;
    const StepSegments host = step.list.View();
    const int64_t pages = host.num_segments * max_pages;
    std::vector<int32_t> table(pages);
    for (int64_t i = 0; i < pages; ++i) {
      table[i] = static_cast<int32_t>((i * 11 + 3) % pages);
    }
    // 11 and the number of pages must have no common divisor.
    ASSERT_NE(pages % 11, 0);
    const DType kv = out;
    const int64_t pool = pages * kv_heads * kPageTokens * dim;
    const Tensor qkv(in, RandomFloats(step.rows * width, 1));
    Tensor k_pages(kv, RandomFloats(pool, 2));
    Tensor v_pages(kv, RandomFloats(pool, 3));
    const auto norm = RandomFloats(2 * dim, 4);
    const Angles angles(step.rows, dim / 4);
    bool want_pages = true;
    const auto run = [&, in = in, out = out, dim = dim](DeviceArena& arena) {
      PagedAttentionArgs args;
      args.qkv = arena.Put(qkv);
      args.qkv_dtype = in;
      args.rows = step.rows;
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
      args.out = arena.Put(
          Tensor(out, std::vector<float>(step.rows * heads * dim, 7)));
      args.out_dtype = out;
      arena.backend().PagedAttention(args);
      if (!want_pages) {
        return arena.GetFloats(args.out, step.rows * heads * dim, out);
      }
      std::vector<float> all = arena.GetFloats(args.k_pages, pool, kv);
      const auto v = arena.GetFloats(args.v_pages, pool, kv);
      all.insert(all.end(), v.begin(), v.end());
      return all;
    };
    SCOPED_TRACE(testing::Message() << step.rows << " rows, " << heads
                                    << " heads, " << kv_heads << " KV heads");
    ExpectSame(run, Tolerance(kv) / 10);

    // What lies behind a sequence is left over from others.
    for (int segment = 0; segment < host.num_segments; ++segment) {
      const int64_t length = host.position[segment] + host.row_count[segment];
      if (host.row_count[segment] == 0) continue;
      for (int64_t at = length; at < max_pages * kPageTokens; ++at) {
        const int64_t page =
            table[host.page_row[segment] * max_pages + at / kPageTokens];
        for (int h = 0; h < kv_heads; ++h) {
          const int64_t entry =
              ((page * kv_heads + h) * kPageTokens + at % kPageTokens) * dim;
          for (int d = 0; d < dim; ++d) {
            k_pages.Set(entry + d, std::numeric_limits<float>::quiet_NaN());
            v_pages.Set(entry + d, std::numeric_limits<float>::quiet_NaN());
          }
        }
      }
    }
    want_pages = false;
    ExpectSame(run, Tolerance(out));
  }
};

TEST_P(PagedCudaTest, MixedStepsAgree) {
  for (const PagedVariant& variant :
       {PagedVariant{4, 2}, {3, 1}, {8, 2}, {8, 1}, {16, 1}, {32, 4}}) {
    Compare(MixedStep(), variant, 5);
  }
}

TEST_P(PagedCudaTest, LongContextsThatAreSplitAgree) {
  for (int rows : {1, 3, 9, 17}) {
    Step step;
    for (int i = 0; i < rows; ++i) {
      step.list.Add({i, 1, 40 + 73 * i, -1, -1, i}, true);
    }
    step.rows = rows;
    Compare(step, {8, 1}, 25);
  }
  for (int position : {255, 256, 5000, 30001}) {
    Step one;
    one.list.Add({0, 1, position, -1, -1, 0}, true);
    one.rows = 1;
    Compare(one, {16, 2}, 480);
  }
}

TEST_P(PagedCudaTest, LongPromptsAgree) {
  Step step;
  step.list.Add({0, 1, 200, -1, -1, 0}, true);
  step.list.Add({1, 333, 0, -1, -1, 1});
  step.list.Add({334, 17, 300, -1, -1, 2});
  step.list.Add({351, 128, 447, -1, -1, 3});
  step.rows = 479;
  for (const PagedVariant& variant : {PagedVariant{8, 1}, {3, 1}, {4, 4}}) {
    Compare(step, variant, 9);
  }
}
INSTANTIATE_TEST_SUITE_P(All, PagedCudaTest, testing::ValuesIn(kCases),
                         NameOfCase);

// Softmax heads of 128 over bf16 pages, on the GPU.
class PagedSequences {
 public:
  static constexpr int kDim = 128;
  static constexpr int kHeads = 8;
  static constexpr int kKvHeads = 1;
  static constexpr int kWidth = (kHeads + 2 * kKvHeads) * kDim;

  PagedSequences(int sequences, int max_pages)
      : max_pages_(max_pages), arena_(TestGpu()) {
    const int64_t pool =
        int64_t{sequences} * max_pages * kKvHeads * kPageTokens * kDim;
    k_pages_ = arena_.Put(Tensor(DType::kBFloat16, RandomFloats(pool, 2)));
    v_pages_ = arena_.Put(Tensor(DType::kBFloat16, RandomFloats(pool, 3)));
    std::vector<int32_t> table(sequences * max_pages);
    for (size_t i = 0; i < table.size(); ++i) table[i] = i;
    table_ = arena_.Put(table);
  }

  // Outputs of the step's rows.
  std::vector<float> Run(const SegmentList& list,
                         const std::vector<float>& qkv) {
    DeviceArena arena(TestGpu());
    PagedAttentionArgs args;
    args.qkv = arena.Put(qkv);
    args.rows = qkv.size() / kWidth;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kDim;
    args.segments = arena.Put(list.View());
    args.segments.page_table = table_;
    args.segments.page_stride = max_pages_;
    args.k_pages = k_pages_;
    args.v_pages = v_pages_;
    BFloat16* const out = arena.Make<BFloat16>(args.rows * kHeads * kDim);
    args.out = out;
    args.out_dtype = DType::kBFloat16;
    arena.backend().PagedAttention(args);
    return arena.GetFloats(out, args.rows * kHeads * kDim, args.out_dtype);
  }

 private:
  const int max_pages_;
  DeviceArena arena_;
  void* k_pages_ = nullptr;
  void* v_pages_ = nullptr;
  const int32_t* table_ = nullptr;
};

TEST(PagedCudaSequenceTest, PromptGivesWhatDecodeStepsGive) {
  constexpr int kRows = 140;
  constexpr int kBefore = 1000;
  const auto qkv = RandomFloats(kRows * PagedSequences::kWidth, 5);
  PagedSequences prompt(1, 20);
  SegmentList list;
  list.Add({0, kRows, kBefore, -1, -1, 0});
  const auto outputs = prompt.Run(list, qkv);
  PagedSequences decode(1, 20);
  std::vector<float> decode_outputs;
  for (int i = 0; i < kRows; ++i) {
    SegmentList one;
    one.Add({0, 1, kBefore + i, -1, -1, 0}, true);
    const auto o = decode.Run(
        one,
        std::vector<float>(qkv.begin() + i * PagedSequences::kWidth,
                           qkv.begin() + (i + 1) * PagedSequences::kWidth));
    decode_outputs.insert(decode_outputs.end(), o.begin(), o.end());
  }
  EXPECT_LE(RelativeL2(outputs, decode_outputs, decode_outputs.size()), 4e-3);
}

TEST(PagedCudaSequenceTest, DecodeRowIsTheSameAloneAndInABatch) {
  constexpr int kBatch = 40;
  const auto qkv = RandomFloats(kBatch * PagedSequences::kWidth, 5);
  PagedSequences sequences(kBatch, 50);
  SegmentList all;
  const auto position = [](int i) { return 3 + 79 * i; };
  for (int i = 0; i < kBatch; ++i) {
    all.Add({i, 1, position(i), -1, -1, i}, true);
  }
  const auto together = sequences.Run(all, qkv);
  constexpr int kOut = PagedSequences::kHeads * PagedSequences::kDim;
  for (int i : {0, 1, 17, 39}) {
    SegmentList one;
    one.Add({0, 1, position(i), -1, -1, i}, true);
    const auto alone = sequences.Run(
        one,
        std::vector<float>(qkv.begin() + i * PagedSequences::kWidth,
                           qkv.begin() + (i + 1) * PagedSequences::kWidth));
    EXPECT_TRUE(
        std::equal(alone.begin(), alone.end(), together.begin() + i * kOut))
        << "row " << i;
  }
}

}  // namespace
}  // namespace ring
