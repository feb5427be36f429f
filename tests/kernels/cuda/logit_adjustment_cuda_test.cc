// CPU = CUDA for biases, masks and penalties: bit for bit, since nothing of it
// depends on an order.
#include "kernels/sampling/logit_adjustment.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>

#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kSequences = 3;

// Random ids, some of other ranks, with padding between.
struct GivenTokens {
  std::vector<int32_t> ids;
  std::vector<int32_t> sequences;
};

GivenTokens RandomTokens(int count, int32_t begin, int64_t cols,
                         uint32_t seed) {
  std::mt19937 random(seed);
  GivenTokens tokens;
  for (int i = 0; i < count; ++i) {
    const auto id = begin - 3 + static_cast<int32_t>(random() % (cols / 4 + 7));
    tokens.ids.push_back(i % 50 == 0 ? -1 : std::max(id, 0));
    tokens.sequences.push_back(
        i % 70 == 0 ? -1 : static_cast<int32_t>(random() % kSequences));
  }
  return tokens;
}

// Distinct ids in and around the slice, every seventh masked.
std::vector<LogitEdit> RandomEdits(int32_t begin, int64_t cols) {
  std::vector<LogitEdit> edits(kSequences * kMaxLogitEdits);
  for (int s = 0; s < kSequences; ++s) {
    const int64_t step = std::max<int64_t>(cols / kMaxLogitEdits, 1);
    for (int64_t i = 0; i < kMaxLogitEdits; ++i) {
      edits[s * kMaxLogitEdits + i] = {
          static_cast<int32_t>(begin - 2 + s + i * step),
          i % 7 == 0 ? -kInf : 0.01f * static_cast<float>(i - 500)};
    }
    // Masked besides its bias.
    edits[s * kMaxLogitEdits + 1000] = {edits[s * kMaxLogitEdits + 5].id,
                                        -kInf};
  }
  return edits;
}

std::vector<float> Adjust(Backend* backend, int32_t begin, int64_t cols) {
  DeviceArena arena(backend);
  Occurrences* const occurrences =
      arena.Put(std::vector<Occurrences>(kSequences * cols));
  for (const bool prompt : {true, false}) {
    const GivenTokens tokens =
        RandomTokens(prompt ? 3001 : 777, begin, cols, prompt ? 1 : 2);
    backend->CountTokens({arena.Put(tokens.ids), arena.Put(tokens.sequences),
                          static_cast<int64_t>(tokens.ids.size()), prompt,
                          begin, cols, occurrences});
  }
  backend->CountTokens({});
  const std::vector<LogitAdjustment> rows = {
      {0, 1.3f, 0.5f, 0.25f, kMaxLogitEdits},
      {},
      {2, 0.7f, 0, 0, 0},
      {1, 1, -1.5f, 0.125f, 1},
      {1, 1, 0, 0, 900},
      {0, 1e-38f, 0, 2, 0},
      {2, 1, 0, 0, 0}};
  const int64_t n = static_cast<int64_t>(rows.size());
  std::vector<float> logits = RandomFloats(n * cols, 4, 3.0f);
  logits[0] = -0.0f;
  logits[n * cols - 1] = kInf;
  AdjustLogitsArgs args;
  args.slice = {arena.Put(logits), n, cols, begin,
                static_cast<int32_t>(begin + cols)};
  args.adjustments = arena.Put(rows);
  args.occurrences = occurrences;
  args.edits = arena.Put(RandomEdits(begin, cols));
  args.adjusted = arena.Make<float>(n * cols);
  backend->AdjustLogits(args);
  backend->AdjustLogits({});
  return arena.Get(args.adjusted, n * cols);
}

TEST(AdjustLogitsCudaTest, AgreesInEveryBit) {
  for (const int64_t cols : {1, 37, 4096, 4097, 157184}) {
    for (const int32_t begin : {0, 39297}) {
      const std::vector<float> cpu = Adjust(TestCpu(), begin, cols);
      const std::vector<float> gpu = Adjust(TestGpu(), begin, cols);
      ASSERT_EQ(gpu.size(), cpu.size());
      for (size_t i = 0; i < cpu.size(); ++i) {
        ASSERT_EQ(std::memcmp(&gpu[i], &cpu[i], sizeof(float)), 0)
            << gpu[i] << " and " << cpu[i] << " in row " << i / cols
            << ", column " << i % cols << " of " << cols;
      }
    }
  }
}

// Statistics and draws of adjusted logits report the raw ones.
TEST(AdjustLogitsCudaTest, RawLogitsAreCarriedAlong) {
  for (const int64_t cols : {1, 37, 20001}) {
    constexpr int64_t kRows = 4;
    const std::vector<float> raw = RandomFloats(kRows * cols, 5, 3.0f);
    const std::vector<float> adjusted = RandomFloats(kRows * cols, 6, 3.0f);
    std::vector<SamplingRow> params(kRows);
    for (int i = 1; i < kRows; ++i) {
      params[i].temperature = 0.5f * static_cast<float>(i);
      params[i].seed = i;
    }
    const auto run = [&](Backend* backend) {
      DeviceArena arena(backend);
      const LogitsSlice slice = {
          arena.Put(adjusted),        kRows,         cols, 0,
          static_cast<int32_t>(cols), arena.Put(raw)};
      const LogitsSlice raw_slice = {slice.raw, kRows, cols, 0,
                                     static_cast<int32_t>(cols)};
      const SamplingRow* const rows = arena.Put(params);
      RowStats* const part = arena.Make<RowStats>(2 * kRows);
      RowStats* const stats = arena.Make<RowStats>(2 * kRows);
      Threshold* const thresholds = arena.Make<Threshold>(2 * kRows);
      TokenDraw* const draws = arena.Make<TokenDraw>(kRows);
      SampledToken* const tokens = arena.Make<SampledToken>(kRows);
      int32_t* const ids = arena.Make<int32_t>(kRows);
      backend->LogitStats({slice, part});
      backend->LogitStats({raw_slice, part + kRows});
      backend->MergeStats({part, 1, 2 * kRows, stats, thresholds});
      backend->DrawTokens({slice, rows, stats, thresholds, draws});
      backend->FinishTokens(
          {rows, stats, stats + kRows, draws, 1, kRows, tokens, ids});
      return arena.Get(tokens, kRows);
    };
    const std::vector<SampledToken> cpu = run(TestCpu());
    const std::vector<SampledToken> gpu = run(TestGpu());
    for (int64_t i = 0; i < kRows; ++i) {
      EXPECT_EQ(gpu[i].id, cpu[i].id) << "row " << i << " of " << cols;
      EXPECT_NEAR(gpu[i].logprob, cpu[i].logprob, 1e-5) << "row " << i;
    }
  }
}

}  // namespace
}  // namespace ring
