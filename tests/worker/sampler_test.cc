#include "worker/sampler.h"

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu_backend.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Where the threads of one test meet.
struct Meeting {
  explicit Meeting(int ranks) : barrier(ranks), sent(ranks) {}
  std::barrier<> barrier;
  std::vector<const void*> sent;
};

class TestCommunicator final : public Communicator {
 public:
  TestCommunicator(Meeting* meeting, int rank)
      : meeting_(meeting), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_->sent.size()); }

  void AllGather(const void* send, void* recv, int64_t bytes) override {
    ++gathers;
    meeting_->sent[rank_] = send;
    meeting_->barrier.arrive_and_wait();
    for (int r = 0; r < size(); ++r) {
      std::memcpy(static_cast<char*>(recv) + r * bytes, meeting_->sent[r],
                  bytes);
    }
    meeting_->barrier.arrive_and_wait();
  }

  void AllToAll(absl::Span<const AllToAllRows>, absl::Span<const int64_t>,
                absl::Span<const int64_t>) override {
    ADD_FAILURE() << "the sampler only gathers";
  }
  void ReduceRows(const ReduceRowsArgs&) override {
    ADD_FAILURE() << "the sampler only gathers";
  }

  int gathers = 0;

 private:
  Meeting* const meeting_;
  const int rank_;
};

struct Outcome {
  std::vector<SampledToken> tokens;
  std::vector<int32_t> ids;
  int gathers = 0;
};

// Row i is of sequence i, whose list of edits is `edits`. Draws `steps` times
// from the same logits.
struct Adjusting {
  std::vector<LogitAdjustment> rows;
  std::vector<LogitEdit> edits;
  int steps = 1;
};

// Samples on `ranks` threads, rank r holding columns [cuts[r], cuts[r + 1]).
// All ranks must agree. The outcome is that of all steps.
Outcome SampleSliced(const std::vector<std::vector<float>>& logits,
                     const std::vector<SamplingRow>& rows,
                     const std::vector<int>& cuts, int num_token_ids,
                     const Adjusting& adjusting = {}) {
  const int ranks = static_cast<int>(cuts.size()) - 1;
  Meeting meeting(ranks);
  std::vector<Outcome> outcomes(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const int columns = cuts[rank + 1] - cuts[rank];
      std::vector<float> slice;
      for (const std::vector<float>& row : logits) {
        slice.insert(slice.end(), row.begin() + cuts[rank],
                     row.begin() + cuts[rank + 1]);
      }
      const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
      TestCommunicator tp(&meeting, rank);
      auto sampler = Sampler::Create(
          {static_cast<int64_t>(rows.size()), cuts[rank], columns, 8},
          backend.get(), &tp);
      ASSERT_TRUE(sampler.ok());
      std::vector<int32_t> sequences(rows.size());
      std::iota(sequences.begin(), sequences.end(), 0);
      const bool adjust = !adjusting.rows.empty();
      for (const int32_t sequence : sequences) {
        if (adjust) (*sampler)->StartSequence(sequence, true, adjusting.edits);
      }
      Outcome& o = outcomes[rank];
      std::vector<SampledToken> tokens(rows.size());
      std::vector<int32_t> ids(rows.size(), -9);
      Sampler::DrawArgs draw;
      draw.logits = slice.data();
      draw.rows = rows.data();
      draw.num_rows = static_cast<int64_t>(rows.size());
      draw.mode = Sampler::ModeOf(rows);
      draw.mode.adjust = adjust;
      draw.adjustments = adjusting.rows.data();
      draw.sequences = sequences.data();
      draw.num_token_ids = num_token_ids;
      draw.ids = ids.data();
      for (int step = 0; step < adjusting.steps; ++step) {
        (*sampler)->Draw(draw);
        (*sampler)->Read(absl::MakeSpan(tokens));
        backend->Synchronize();
        o.tokens.insert(o.tokens.end(), tokens.begin(), tokens.end());
        o.ids.insert(o.ids.end(), ids.begin(), ids.end());
      }
      o.gathers = tp.gathers;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Outcome& o : outcomes) {
    EXPECT_EQ(o.ids, outcomes[0].ids);
    EXPECT_EQ(o.gathers, outcomes[0].gathers);
    for (size_t i = 0; i < o.ids.size(); ++i) {
      EXPECT_EQ(o.tokens[i].id, o.ids[i]);
      EXPECT_EQ(o.tokens[i].logprob, outcomes[0].tokens[i].logprob);
    }
  }
  return outcomes[0];
}

Outcome SampleWhole(const std::vector<std::vector<float>>& logits,
                    const std::vector<SamplingRow>& rows) {
  const int vocab = logits.empty() ? 0 : static_cast<int>(logits[0].size());
  return SampleSliced(logits, rows, {0, vocab}, vocab);
}

std::vector<float> RandomLogits(int vocab, uint32_t seed, float scale = 3) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(vocab);
  for (float& value : x) value = normal(generator);
  return x;
}

// Probabilities after temperature and filters, from their definitions.
std::map<int, double> Filtered(const std::vector<float>& logits,
                               const SamplingRow& row) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  if (row.top_k > 0 && row.top_k < static_cast<int>(order.size())) {
    order.resize(row.top_k);
  }
  std::vector<double> p;
  for (int id : order) {
    p.push_back(
        std::exp((double{logits[id]} - logits[order[0]]) / row.temperature));
  }
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  double above = 0;
  size_t kept = 0;
  while (kept < p.size() &&
         (kept == 0 || row.top_p >= 1 || above < row.top_p * total)) {
    above += p[kept++];
  }
  std::map<int, double> result;
  total = 0;
  for (size_t i = 0; i < kept; ++i) {
    if (p[i] >= row.min_p * p[0]) total += p[i];
  }
  for (size_t i = 0; i < kept; ++i) {
    if (p[i] >= row.min_p * p[0]) result[order[i]] = p[i] / total;
  }
  return result;
}

double LogSoftmax(const std::vector<float>& logits, int id) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(x - max);
  return logits[id] - max - std::log(sum);
}

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowerOfEquals) {
  std::vector<float> logits = RandomLogits(100, 1);
  logits[31] = logits[77] = 50;
  const Outcome o = SampleWhole({logits, RandomLogits(100, 2)}, {{}, {}});
  EXPECT_EQ(o.ids[0], 31);
  const std::vector<float> second = RandomLogits(100, 2);
  EXPECT_EQ(o.ids[1],
            std::max_element(second.begin(), second.end()) - second.begin());
  EXPECT_EQ(o.gathers, 1);
}

TEST(SamplerTest, TopKOfOneIsGreedy) {
  SamplingRow row;
  row.temperature = 2;
  row.top_k = 1;
  const std::vector<float> logits = RandomLogits(100, 1);
  EXPECT_EQ(SampleWhole({logits}, {row}).ids[0],
            std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST(SamplerTest, LogprobIsTheLogSoftmaxOfTheRawLogits) {
  SamplingRow drawn;
  drawn.temperature = 0.7f;
  drawn.top_k = 5;
  drawn.top_p = 0.8f;
  const std::vector<float> logits = RandomLogits(20000, 3);
  for (const std::vector<int>& cuts :
       {std::vector<int>{0, 20000}, {0, 7, 9000, 20000}}) {
    const Outcome o = SampleSliced({logits, logits}, {{}, drawn}, cuts, 20000);
    for (const SampledToken& token : o.tokens) {
      EXPECT_NEAR(token.logprob, LogSoftmax(logits, token.id), 1e-5);
    }
  }
}

TEST(SamplerTest, GivenTokensAreScored) {
  constexpr int kVocab = 301;
  const std::vector<float> logits = RandomLogits(kVocab, 4);
  std::vector<SamplingRow> rows(4);
  rows[0].given = 0;
  rows[1].given = 200;
  rows[2].given = kVocab - 1;
  rows[3].temperature = 1;  // and one that is drawn
  const std::vector<std::vector<float>> all(rows.size(), logits);
  for (const std::vector<int>& cuts :
       {std::vector<int>{0, kVocab}, {0, 7, 200, kVocab}}) {
    const Outcome o = SampleSliced(all, rows, cuts, kVocab);
    EXPECT_EQ(o.gathers, 2);
    for (size_t r = 0; r < rows.size(); ++r) {
      if (IsGiven(rows[r])) {
        EXPECT_EQ(o.ids[r], rows[r].given);
      }
      EXPECT_NEAR(o.tokens[r].logprob, LogSoftmax(logits, o.ids[r]), 1e-5);
    }
  }
}

TEST(SamplerTest, NothingHappensWithoutRows) {
  EXPECT_EQ(SampleWhole({}, {}).gathers, 0);
}

TEST(SamplerTest, CollectivesDependOnTheParametersAlone) {
  SamplingRow plain, top_k, top_p, both;
  plain.temperature = top_k.temperature = top_p.temperature = both.temperature =
      1;
  top_k.top_k = both.top_k = 4;
  top_p.top_p = both.top_p = 0.5f;
  SamplingRow report;
  report.num_top = 3;
  const std::vector<float> x = RandomLogits(50, 1);
  const std::vector<float> nan(50, kNaN);
  for (const std::vector<float>& logits : {x, nan}) {
    EXPECT_EQ(SampleWhole({logits}, {{}}).gathers, 1);
    EXPECT_EQ(SampleWhole({logits}, {plain}).gathers, 2);
    EXPECT_EQ(SampleWhole({logits}, {top_k}).gathers, 6);
    EXPECT_EQ(SampleWhole({logits}, {top_p}).gathers, 6);
    EXPECT_EQ(SampleWhole({logits}, {both}).gathers, 10);
    EXPECT_EQ(SampleWhole({logits, logits}, {top_k, {}}).gathers, 6);
    EXPECT_EQ(SampleWhole({logits, logits}, {report, {}}).gathers, 2);
  }
}

TEST(SamplerTest, AdjustmentsNeedNoCollective) {
  SamplingRow drawn;
  drawn.temperature = 1;
  drawn.top_k = 5;
  const std::vector<float> logits = RandomLogits(50, 1);
  const Adjusting adjusting = {{{0, 2, 0, 0, 0}, {}}, {}};
  EXPECT_EQ(
      SampleSliced({logits, logits}, {{}, {}}, {0, 50}, 50, adjusting).gathers,
      1);
  EXPECT_EQ(SampleSliced({logits, logits}, {{}, drawn}, {0, 50}, 50, adjusting)
                .gathers,
            6);
}

// With a penalty that nothing outweighs, draws visit the ids in order. Those
// that are masked never come; the log probabilities stay those of the model.
TEST(SamplerTest, DrawnTokensAreCountedAndMaskedOnesNeverDrawn) {
  const std::vector<float> logits = RandomLogits(64, 4);
  std::vector<int32_t> order(64);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return logits[a] > logits[b]; });
  Adjusting adjusting;
  adjusting.rows = {{0, 1, 1e4f, 0, 2}, {}, {2, 1, 0, 1e4f, 0}};
  adjusting.edits = {{order[0], -kInf}, {order[3], -kInf}};
  adjusting.steps = 60;
  for (const std::vector<int>& cuts :
       {std::vector<int>{0, 64}, {0, 7, 30, 30, 64}}) {
    const Outcome o = SampleSliced({logits, logits, logits}, {{}, {}, {}}, cuts,
                                   64, adjusting);
    std::vector<int32_t> masked;
    std::vector<int32_t> all;
    for (int step = 0; step < adjusting.steps; ++step) {
      masked.push_back(o.ids[3 * step]);
      EXPECT_EQ(o.ids[3 * step + 1], order[0]);
      all.push_back(o.ids[3 * step + 2]);
      for (int i = 3 * step; i < 3 * step + 3; ++i) {
        EXPECT_NEAR(o.tokens[i].logprob, LogSoftmax(logits, o.ids[i]), 1e-5);
      }
    }
    std::vector<int32_t> expected = order;
    expected.resize(60);
    EXPECT_EQ(all, expected);
    expected = order;
    expected.erase(expected.begin() + 3);
    expected.erase(expected.begin());
    expected.resize(60);
    EXPECT_EQ(masked, expected);
  }
}

// A mask cannot hide that the model's numbers are none.
TEST(SamplerTest, MaskedRowsThatAreNotNumbersAreReported) {
  std::vector<float> logits = RandomLogits(16, 1);
  logits[5] = kNaN;
  const Adjusting adjusting = {{{0, 1, 0, 0, 1}}, {{5, -kInf}}};
  EXPECT_EQ(SampleSliced({logits}, {{}}, {0, 16}, 16, adjusting).ids[0], -1);
}

// A mix of all filters, on one row of logits each.
std::vector<SamplingRow> MixedRows(int count) {
  std::vector<SamplingRow> rows;
  for (int i = 0; i < count; ++i) {
    SamplingRow row;
    row.temperature = i % 7 == 0 ? 0 : 0.5f + 0.25f * (i % 5);
    row.top_k = i % 3 == 0 ? 0 : 1 + i % 40;
    row.top_p = i % 4 == 0 ? 1 : 0.2f * (1 + i % 5);
    row.min_p = i % 6 == 0 ? 0.05f : 0;
    row.seed = 1000 + i / 2;
    row.position = i;
    rows.push_back(row);
  }
  return rows;
}

TEST(SamplerTest, TokensDoNotDependOnTheSlicing) {
  constexpr int kVocab = 1000;
  const std::vector<SamplingRow> rows = MixedRows(60);
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 60; ++i) {
    logits.push_back(RandomLogits(kVocab, i));
    if (i % 2 == 0) {  // coarse values: many ties
      for (float& x : logits.back()) x = std::round(x);
    }
  }
  const int num_token_ids = 960;
  const Outcome whole = SampleSliced(logits, rows, {0, kVocab}, num_token_ids);
  for (const std::vector<int>& cuts : {std::vector<int>{0, 500, 1000},
                                       {0, 250, 500, 750, 1000},
                                       {0, 1, 2, 1000},
                                       {0, 0, 970, 1000}}) {
    EXPECT_EQ(SampleSliced(logits, rows, cuts, num_token_ids).ids, whole.ids);
  }
}

TEST(SamplerTest, TokensDoNotDependOnTheBatch) {
  const std::vector<SamplingRow> rows = MixedRows(30);
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 30; ++i) logits.push_back(RandomLogits(300, i));
  const Outcome batch = SampleWhole(logits, rows);
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(SampleWhole({logits[i]}, {rows[i]}).ids[0], batch.ids[i]);
  }
}

TEST(SamplerTest, PaddingIdsAreNeverDrawn) {
  std::vector<float> logits(64, 0.0f);
  std::fill(logits.begin() + 40, logits.end(), 100.0f);
  std::vector<SamplingRow> rows(200);
  for (int i = 0; i < 200; ++i) {
    rows[i].temperature = i == 0 ? 0 : 1.5f;
    rows[i].position = i;
    rows[i].top_p = i % 2 == 0 ? 1 : 0.9f;
  }
  const std::vector<std::vector<float>> all(200, logits);
  // The last slice has no id that may be drawn.
  for (const std::vector<int>& cuts :
       {std::vector<int>{0, 64}, {0, 32, 64}, {0, 20, 40, 64}}) {
    const Outcome o = SampleSliced(all, rows, cuts, 40);
    EXPECT_THAT(o.ids,
                testing::Each(testing::AllOf(testing::Ge(0), testing::Lt(40))));
    EXPECT_NEAR(o.tokens[0].logprob, std::log(1.0 / 40), 1e-6);
  }
}

TEST(SamplerTest, RowsThatAreNotNumbersAreReportedAlone) {
  SamplingRow row;
  row.temperature = 1;
  row.top_k = 3;
  row.top_p = 0.5f;
  std::vector<std::vector<float>> logits(5, RandomLogits(64, 1));
  logits[1][50] = kNaN;
  logits[2][0] = kInf;
  logits[3].assign(64, -kInf);
  for (bool greedy : {false, true}) {
    const std::vector<SamplingRow> rows(5, greedy ? SamplingRow() : row);
    for (const std::vector<int>& cuts :
         {std::vector<int>{0, 64}, {0, 16, 32, 48, 64}}) {
      const Outcome o = SampleSliced(logits, rows, cuts, 64);
      EXPECT_GE(o.ids[0], 0);
      EXPECT_EQ(o.ids[1], -1);
      EXPECT_EQ(o.ids[2], -1);
      EXPECT_EQ(o.ids[3], -1);
      EXPECT_GE(o.ids[4], 0);
    }
  }
}

TEST(SamplerTest, IdsOfLogitMinusInfinityAreNeverDrawn) {
  std::vector<float> logits(64, -kInf);
  logits[10] = logits[20] = 1;
  SamplingRow row;
  row.temperature = 1;
  row.top_k = 30;  // more than there are
  row.top_p = 0.99f;
  std::vector<SamplingRow> rows(100, row);
  for (int i = 0; i < 100; ++i) rows[i].position = i;
  const Outcome o =
      SampleWhole(std::vector<std::vector<float>>(100, logits), rows);
  EXPECT_THAT(std::set<int>(o.ids.begin(), o.ids.end()),
              testing::ElementsAre(10, 20));
}

TEST(SamplerTest, SeedAndPositionDecideTheDraw) {
  SamplingRow row;
  row.temperature = 1;
  std::vector<SamplingRow> rows;
  for (uint64_t seed : {uint64_t{1}, uint64_t{2}, uint64_t{1} << 32}) {
    for (int position = 0; position < 50; ++position) {
      row.seed = seed;
      row.position = position;
      rows.push_back(row);
    }
  }
  const std::vector<std::vector<float>> logits(150, RandomLogits(200, 1, 0.5f));
  const std::vector<int32_t> ids = SampleWhole(logits, rows).ids;
  EXPECT_EQ(SampleWhole(logits, rows).ids, ids);
  const std::vector<int32_t> a(ids.begin(), ids.begin() + 50);
  const std::vector<int32_t> b(ids.begin() + 50, ids.begin() + 100);
  const std::vector<int32_t> c(ids.begin() + 100, ids.end());
  EXPECT_NE(a, b);
  EXPECT_NE(a, c);
  EXPECT_GT(std::set<int>(a.begin(), a.end()).size(), 20u);
}

struct FrequencyCase {
  const char* name;
  SamplingRow row;
};

class SamplerFrequencyTest : public testing::TestWithParam<FrequencyCase> {};

// Chi-square of 20,000 draws against the exact probabilities. Classes with an
// expected count below 10 are pooled. The bound is the 99.9% point of the
// normal approximation; seeds are fixed, so the test cannot flake.
TEST_P(SamplerFrequencyTest, FollowsTheExactProbabilities) {
  constexpr int kDraws = 20000;
  const std::vector<float> logits = RandomLogits(60, 11, 1.5f);
  const std::map<int, double> expected = Filtered(logits, GetParam().row);
  std::vector<SamplingRow> rows(kDraws, GetParam().row);
  for (int i = 0; i < kDraws; ++i) {
    rows[i].seed = 77;
    rows[i].position = i;
  }
  const Outcome o =
      SampleWhole(std::vector<std::vector<float>>(kDraws, logits), rows);
  std::map<int, int> counts;
  for (int id : o.ids) ++counts[id];

  for (const auto& [id, count] : counts) {
    EXPECT_TRUE(expected.count(id)) << "id " << id << " is filtered out";
  }
  double chi_square = 0;
  double pooled_expected = 0;
  double pooled_count = 0;
  int classes = 0;
  for (const auto& [id, p] : expected) {
    if (p * kDraws < 10) {
      pooled_expected += p * kDraws;
      pooled_count += counts[id];
      continue;
    }
    const double difference = counts[id] - p * kDraws;
    chi_square += difference * difference / (p * kDraws);
    ++classes;
  }
  if (pooled_expected > 0) {
    const double difference = pooled_count - pooled_expected;
    chi_square += difference * difference / pooled_expected;
    ++classes;
  }
  const double freedom = std::max(classes - 1, 1);
  EXPECT_LT(chi_square, freedom + 3.3 * std::sqrt(2 * freedom) + 5)
      << classes << " classes";
}

FrequencyCase MakeCase(const char* name, float temperature, int top_k,
                       float top_p, float min_p) {
  FrequencyCase c = {name, {}};
  c.row.temperature = temperature;
  c.row.top_k = top_k;
  c.row.top_p = top_p;
  c.row.min_p = min_p;
  return c;
}

INSTANTIATE_TEST_SUITE_P(
    Filters, SamplerFrequencyTest,
    testing::Values(
        MakeCase("Temperature1", 1, 0, 1, 0), MakeCase("Hot", 3, 0, 1, 0),
        MakeCase("Cold", 0.3f, 0, 1, 0), MakeCase("TopK", 1.2f, 7, 1, 0),
        MakeCase("TopP", 0.9f, 0, 0.85f, 0), MakeCase("MinP", 1, 0, 1, 0.1f),
        MakeCase("All", 1.3f, 20, 0.9f, 0.05f),
        MakeCase("TopPZeroKeepsTheBest", 1, 0, 0, 0)),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ring
