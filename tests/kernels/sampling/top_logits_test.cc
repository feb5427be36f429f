// Against sorted lists, on slices that a loop plays the ranks of.
#include "kernels/sampling/top_logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Of rows that ask for `num_top[row]` ids; [rows * kMaxTopLogits].
std::vector<TopLogit> Top(const std::vector<std::vector<float>>& logits,
                          const std::vector<int>& num_top,
                          const std::vector<int>& cuts, int num_token_ids) {
  ThreadPool pool(2);
  const auto rows = static_cast<int64_t>(logits.size());
  const int ranks = static_cast<int>(cuts.size()) - 1;
  std::vector<SamplingRow> params(rows);
  for (int64_t r = 0; r < rows; ++r) params[r].num_top = num_top[r];
  std::vector<RowStats> part_stats(rows * ranks);
  std::vector<TopLogit> parts(rows * ranks * kMaxTopLogits, TopLogit{-7, 99});
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<float> columns;
    for (const std::vector<float>& row : logits) {
      columns.insert(columns.end(), row.begin() + cuts[rank],
                     row.begin() + cuts[rank + 1]);
    }
    const LogitsSlice slice = {columns.data(), rows,
                               cuts[rank + 1] - cuts[rank], cuts[rank],
                               num_token_ids};
    cpu::LogitStats({slice, &part_stats[rank * rows]}, &pool);
    cpu::TopLogits({slice, params.data(), &parts[rank * rows * kMaxTopLogits]},
                   &pool);
  }
  std::vector<RowStats> stats(rows);
  std::vector<Threshold> thresholds(rows);
  cpu::MergeStats(
      {part_stats.data(), ranks, rows, stats.data(), thresholds.data()}, &pool);
  std::vector<TopLogit> top(rows * kMaxTopLogits, TopLogit{-7, 99});
  cpu::MergeTopLogits(
      {parts.data(), ranks, rows, params.data(), stats.data(), top.data()},
      &pool);
  return top;
}

// Few different values, so that many are equal.
std::vector<float> RandomRow(int vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> row(vocab);
  for (float& x : row) x = static_cast<float>(random() % 97) / 8 - 4;
  row[0] = -0.0f;
  return row;
}

TEST(TopLogitsTest, AreTheFirstOfTheSortedRow) {
  constexpr int kVocab = 301;
  const std::vector<int> num_top = {20, 0, 1, 5};
  std::vector<std::vector<float>> rows;
  for (uint32_t r = 0; r < num_top.size(); ++r) {
    rows.push_back(RandomRow(kVocab, r));
  }
  for (const int ids : {kVocab, 290, 12}) {
    for (const std::vector<int>& cuts :
         {std::vector<int>{0, kVocab}, {0, 3, 3, 150, kVocab}}) {
      const std::vector<TopLogit> top = Top(rows, num_top, cuts, ids);
      for (size_t r = 0; r < rows.size(); ++r) {
        std::vector<int> order(ids);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return rows[r][a] > rows[r][b]; });
        double sum = 0;
        for (const int id : order) sum += std::exp(double{rows[r][id]});
        for (int k = 0; k < kMaxTopLogits; ++k) {
          const TopLogit& entry = top[r * kMaxTopLogits + k];
          if (k >= std::min(num_top[r], ids)) {
            EXPECT_EQ(entry.id, -1) << "row " << r << ", entry " << k;
            continue;
          }
          EXPECT_EQ(entry.id, order[k]) << "row " << r << ", entry " << k;
          EXPECT_NEAR(entry.value, rows[r][order[k]] - std::log(sum), 1e-5);
        }
      }
    }
  }
}

TEST(TopLogitsTest, LeavesOutWhatCannotBeDrawn) {
  std::vector<float> masked(10, -kInf);
  masked[4] = 1;
  masked[8] = 2;
  std::vector<float> bad = RandomRow(10, 1);
  bad[3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<TopLogit> top = Top({masked, bad}, {3, 3}, {0, 5, 10}, 10);
  EXPECT_EQ(top[0].id, 8);
  EXPECT_EQ(top[1].id, 4);
  EXPECT_EQ(top[2].id, -1);
  EXPECT_EQ(top[kMaxTopLogits].id, -1);
}

TEST(LogitOfKeyTest, IsTheLogit) {
  for (const float x :
       {-kInf, -3e38f, -2.5f, -1e-40f, 0.0f, 1e-40f, 7.0f, 3e38f, kInf}) {
    EXPECT_EQ(LogitOfKey(OrderedKey(x)), x);
  }
}

}  // namespace
}  // namespace ring
