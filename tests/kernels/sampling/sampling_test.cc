// The threshold searches against sorted lists, on slices that a loop plays the
// ranks of. Whole draws are tested with worker/sampler.
#include "kernels/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(OrderedKeyTest, OrdersLikeTheNumbers) {
  const std::vector<float> ascending = {-kInf,  -3e38f, -2.5f, -1e-40f, 0.0f,
                                        1e-40f, 1e-3f,  1.0f,  3e38f,   kInf};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(OrderedKey(ascending[i - 1]), OrderedKey(ascending[i])) << i;
  }
  EXPECT_EQ(OrderedKey(-0.0f), OrderedKey(0.0f));
}

struct Slices {
  std::vector<std::vector<float>> logits;  // of one row, by rank
  std::vector<LogitsSlice> views;
};

Slices Cut(const std::vector<float>& row, const std::vector<int>& cuts) {
  Slices s;
  for (size_t r = 0; r + 1 < cuts.size(); ++r) {
    s.logits.emplace_back(row.begin() + cuts[r], row.begin() + cuts[r + 1]);
  }
  for (size_t r = 0; r + 1 < cuts.size(); ++r) {
    s.views.push_back({s.logits[r].data(), 1, cuts[r + 1] - cuts[r], cuts[r],
                       static_cast<int32_t>(row.size())});
  }
  return s;
}

// The threshold's key after the row's searches.
uint32_t Search(const std::vector<float>& row, const std::vector<int>& cuts,
                const SamplingRow& params) {
  ThreadPool pool(2);
  const Slices slices = Cut(row, cuts);
  const int ranks = static_cast<int>(slices.views.size());
  std::vector<RowStats> parts(ranks);
  for (int r = 0; r < ranks; ++r) {
    cpu::LogitStats({slices.views[r], &parts[r]}, &pool);
  }
  RowStats stats;
  Threshold threshold;
  cpu::MergeStats({parts.data(), ranks, 1, &stats, &threshold}, &pool);
  for (ThresholdKind kind : {ThresholdKind::kTopK, ThresholdKind::kTopP}) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      std::vector<uint64_t> bins(ranks * kThresholdBins);
      for (int r = 0; r < ranks; ++r) {
        cpu::ThresholdHistogram({slices.views[r], &params, &stats, &threshold,
                                 kind, shift, bins.data() + r * kThresholdBins},
                                &pool);
      }
      cpu::NarrowThreshold(
          {&params, bins.data(), ranks, 1, kind, shift, &threshold}, &pool);
    }
  }
  return threshold.min_key;
}

// The smallest logit that top-k, then top-p keep, by sorting.
float Expected(std::vector<float> row, const SamplingRow& params) {
  std::sort(row.begin(), row.end(), std::greater<float>());
  size_t kept = row.size();
  if (params.top_k > 1) kept = std::min<size_t>(kept, params.top_k);
  // Ids that equal the last one stay as well.
  while (kept < row.size() && row[kept] == row[kept - 1]) ++kept;
  if (params.top_p >= 1) return row[kept - 1];
  std::vector<double> mass;
  for (size_t i = 0; i < kept; ++i) {
    mass.push_back(std::exp((double{row[i]} - row[0]) / params.temperature));
  }
  const double wanted =
      params.top_p * std::accumulate(mass.begin(), mass.end(), 0.0);
  double sum = 0;
  size_t i = 0;
  while (i < kept && sum + mass[i] < wanted) sum += mass[i++];
  return row[std::min(i, kept - 1)];
}

TEST(ThresholdTest, SearchesFindTheExactThreshold) {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(-2, 4);
    std::vector<float> row(5000);
    for (float& x : row) x = normal(generator);
    if (seed % 2 == 1) {  // many ties, both zeros
      for (float& x : row) x = std::round(x);
    }
    for (int top_k : {0, 2, 50, 4999, 5000, 100000}) {
      for (float top_p : {0.001f, 0.3f, 0.9f, 0.999f, 1.0f}) {
        SamplingRow params;
        params.temperature = 0.5f + 0.5f * (seed % 3);
        params.top_k = top_k;
        params.top_p = top_p;
        if (top_k == 0 && top_p == 1) continue;
        const uint32_t expected = OrderedKey(Expected(row, params));
        EXPECT_EQ(Search(row, {0, 5000}, params), expected)
            << seed << " top_k " << top_k << " top_p " << top_p;
        EXPECT_EQ(Search(row, {0, 1, 1700, 1700, 5000}, params), expected)
            << seed << " top_k " << top_k << " top_p " << top_p << " sliced";
      }
    }
  }
}

TEST(ThresholdTest, RowsWithoutFiltersKeepEverything) {
  SamplingRow greedy;
  greedy.top_k = 5;
  greedy.top_p = 0.5f;
  SamplingRow plain;
  plain.temperature = 1;
  const std::vector<float> row = {1, 2, 3};
  EXPECT_EQ(Search(row, {0, 3}, greedy), 0u);
  EXPECT_EQ(Search(row, {0, 3}, plain), 0u);
}

}  // namespace
}  // namespace ring
