// Adjusted logits against the formulas computed in fp64 from the tokens
// themselves, on slices that begin anywhere.
#include "kernels/sampling/logit_adjustment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// A sequence as a request describes it.
struct Sequence {
  std::vector<int32_t> prompt;
  std::vector<int32_t> completion;
  std::vector<LogitEdit> edits;
};

// The tables of the sequences on one rank, filled through the op, twice over
// in pieces so that order and calls do not matter.
struct Tables {
  std::vector<Occurrences> occurrences;
  std::vector<LogitEdit> edits;
};

Tables Fill(const std::vector<Sequence>& sequences, int64_t vocab_begin,
            int64_t cols) {
  ThreadPool pool(1);
  const int64_t n = static_cast<int64_t>(sequences.size());
  Tables tables;
  tables.occurrences.assign(n * cols, 0);
  tables.edits.resize(n * kMaxLogitEdits);
  for (const bool prompt : {true, false}) {
    // Tokens of all sequences in turns, with padding between.
    std::vector<int32_t> tokens, rows;
    for (size_t i = 0; i < 4000; ++i) {
      for (int32_t s = 0; s < n; ++s) {
        const auto& list =
            prompt ? sequences[s].prompt : sequences[s].completion;
        if (i >= list.size()) continue;
        tokens.insert(tokens.end(), {list[i], -1, 3});
        rows.insert(rows.end(), {s, s, -1});
      }
    }
    const int64_t half = static_cast<int64_t>(tokens.size() / 2);
    for (const auto& [begin, end] :
         {std::pair{int64_t{0}, half},
          {half, static_cast<int64_t>(tokens.size())}}) {
      cpu::CountTokens(
          {tokens.data() + begin, rows.data() + begin, end - begin, prompt,
           static_cast<int32_t>(vocab_begin), cols, tables.occurrences.data()},
          &pool);
    }
  }
  for (int64_t s = 0; s < n; ++s) {
    std::copy(sequences[s].edits.begin(), sequences[s].edits.end(),
              tables.edits.begin() + s * kMaxLogitEdits);
  }
  return tables;
}

double Expected(double x, int32_t id, const Sequence& sequence,
                const LogitAdjustment& row) {
  for (int i = 0; i < row.num_edits; ++i) {
    if (sequence.edits[i].id == id) x += double{sequence.edits[i].bias};
  }
  const auto count =
      std::count(sequence.completion.begin(), sequence.completion.end(), id);
  if (count > 0 ||
      std::count(sequence.prompt.begin(), sequence.prompt.end(), id) > 0) {
    x *= x > 0 ? 1.0 / row.repetition_penalty : row.repetition_penalty;
  }
  x -= double{row.frequency_penalty} * static_cast<double>(count);
  return x - (count > 0 ? row.presence_penalty : 0);
}

class Random {
 public:
  explicit Random(uint32_t seed) : generator_(seed) {}
  int32_t Below(int64_t n) {
    return static_cast<int32_t>(generator_() % static_cast<uint64_t>(n));
  }
  float Normal() { return normal_(generator_); }

 private:
  std::mt19937 generator_;
  std::normal_distribution<float> normal_{0, 4};
};

Sequence RandomSequence(int64_t vocab, Random* random) {
  Sequence s;
  for (int i = random->Below(3000); i > 0; --i) {
    s.prompt.push_back(random->Below(vocab));
  }
  for (int i = random->Below(300); i > 0; --i) {
    // Few ids, so that they repeat.
    s.completion.push_back(random->Below(std::min<int64_t>(vocab, 40)));
  }
  std::map<int32_t, float> biases;
  for (int i = 0; i < 100; ++i) {
    biases[random->Below(vocab)] = i % 10 == 0 ? -kInf : random->Normal();
  }
  for (const auto& [id, bias] : biases) s.edits.push_back({id, bias});
  // An id that is biased may be masked as well.
  s.edits.push_back({s.edits.front().id, -kInf});
  return s;
}

// The adjusted logits of all rows, from ranks with these columns.
std::vector<float> AdjustSliced(const std::vector<float>& logits, int64_t vocab,
                                const std::vector<Sequence>& sequences,
                                const std::vector<LogitAdjustment>& rows,
                                const std::vector<int64_t>& cuts) {
  ThreadPool pool(2);
  const int64_t n = static_cast<int64_t>(rows.size());
  std::vector<float> all(n * vocab, -1);
  for (size_t rank = 0; rank + 1 < cuts.size(); ++rank) {
    const int64_t begin = cuts[rank];
    const int64_t cols = cuts[rank + 1] - begin;
    const Tables tables = Fill(sequences, begin, cols);
    std::vector<float> slice, adjusted(n * cols);
    for (int64_t r = 0; r < n; ++r) {
      slice.insert(slice.end(), logits.begin() + r * vocab + begin,
                   logits.begin() + r * vocab + begin + cols);
    }
    AdjustLogitsArgs args;
    args.slice = {slice.data(), n, cols, static_cast<int32_t>(begin),
                  static_cast<int32_t>(vocab)};
    args.adjustments = rows.data();
    args.occurrences = tables.occurrences.data();
    args.edits = tables.edits.data();
    args.adjusted = adjusted.data();
    cpu::AdjustLogits(args, &pool);
    for (int64_t r = 0; r < n; ++r) {
      std::copy_n(adjusted.begin() + r * cols, cols,
                  all.begin() + r * vocab + begin);
    }
  }
  return all;
}

TEST(AdjustLogitsTest, FollowsTheFormulasOnAnySlices) {
  Random random(3);
  for (const int64_t vocab : {1, 37, 1001, 157184}) {
    const std::vector<Sequence> sequences = {RandomSequence(vocab, &random),
                                             RandomSequence(vocab, &random),
                                             RandomSequence(vocab, &random)};
    const auto edits = [&](int s) {
      return static_cast<int32_t>(sequences[s].edits.size());
    };
    const std::vector<LogitAdjustment> rows = {{2, 1.3f, 0.5f, 0.25f, edits(2)},
                                               {},
                                               {0, 0.7f, 0, 0, 0},
                                               {1, 1, -1.5f, 0, 2},
                                               {1, 1, 0, 2, 0},
                                               {0, 1, 0, 0, edits(0) - 1}};
    const int64_t n = static_cast<int64_t>(rows.size());
    std::vector<float> logits(n * vocab);
    for (float& x : logits) x = random.Normal();
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{0, vocab},
          {0, vocab / 3, vocab / 3, vocab * 4 / 5, vocab}}) {
      const std::vector<float> adjusted =
          AdjustSliced(logits, vocab, sequences, rows, cuts);
      for (int64_t i = 0; i < n * vocab; ++i) {
        const LogitAdjustment& row = rows[i / vocab];
        double expected = logits[i];
        if (row.sequence >= 0) {
          expected = Expected(logits[i], static_cast<int32_t>(i % vocab),
                              sequences[row.sequence], row);
        }
        if (expected == adjusted[i]) continue;  // -inf too
        // One rounding of the bias' sum, one of the result.
        ASSERT_NEAR(adjusted[i], expected, 1e-5 + 2e-7 * std::abs(expected))
            << "row " << i / vocab << " id " << i % vocab << " of " << vocab;
      }
    }
  }
}

TEST(AdjustLogitsTest, RowsWithoutAdjustmentKeepTheirBits) {
  const std::vector<float> logits = {std::nanf(""), -0.0f, kInf, 1e-40f};
  const std::vector<float> adjusted = AdjustSliced(
      logits, 4, {Sequence{{0, 1, 2, 3}, {0, 1, 2, 3}, {}}}, {{}}, {0, 4});
  EXPECT_TRUE(std::isnan(adjusted[0]));
  EXPECT_TRUE(std::signbit(adjusted[1]));
  EXPECT_EQ(adjusted[2], kInf);
  EXPECT_EQ(adjusted[3], 1e-40f);
}

// What is no number must still be seen as such, and no number may become none.
TEST(AdjustLogitsTest, NumbersStayNumbersAndOthersDoNot) {
  const std::vector<float> logits = {std::nanf(""), kInf, -kInf, 3, -2};
  const std::vector<int32_t> all = {0, 1, 2, 3, 4};
  for (const float repetition : {0.0f, 1e-38f, 10.0f}) {
    const std::vector<float> adjusted =
        AdjustSliced(logits, 5, {Sequence{all, all, {}}},
                     {{0, repetition, 2, 2, 0}}, {0, 5});
    EXPECT_TRUE(std::isnan(adjusted[0]));
    EXPECT_EQ(adjusted[1], kInf);
    EXPECT_EQ(adjusted[2], -kInf);
    EXPECT_TRUE(std::isfinite(adjusted[3])) << repetition;
    EXPECT_TRUE(std::isfinite(adjusted[4])) << repetition;
    EXPECT_GT(adjusted[3], adjusted[4]);
  }
}

TEST(AdjustLogitsTest, NothingHappensWithoutRowsOrColumns) {
  ThreadPool pool(2);
  cpu::AdjustLogits({}, &pool);
  cpu::CountTokens({}, &pool);
  const LogitAdjustment row = {0, 2, 0, 0, 0};
  AdjustLogitsArgs args;
  args.slice.rows = 1;  // of no columns
  args.adjustments = &row;
  cpu::AdjustLogits(args, &pool);
}

}  // namespace
}  // namespace ring
