#include "coordinator/cli/bench/latency_summary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace ring {
namespace {

TEST(DescribeTest, PercentilesAreValuesByNearestRank) {
  // 1 to n in any order: the p-th percentile is ceil(p n / 100).
  for (const int n : {1, 2, 3, 9, 10, 99, 100, 101, 1000}) {
    std::vector<double> values;
    for (int i = 1; i <= n; ++i) values.push_back(i);
    std::shuffle(values.begin(), values.end(), std::mt19937(1));
    const Distribution result = Describe(values);
    EXPECT_EQ(result.count, n);
    EXPECT_EQ(result.p50, (n + 1) / 2) << n;
    EXPECT_EQ(result.p90, n - n / 10) << n;
    EXPECT_EQ(result.p99, n - n / 100) << n;
    EXPECT_EQ(result.max, n);
    EXPECT_DOUBLE_EQ(result.mean, (n + 1) / 2.0);
  }
  EXPECT_EQ(Describe({}).count, 0);
}

// Starts at `start_s`; its first token comes 0.25 s later, three more every
// 0.5 s, and it ends 0.25 s after the last.
RequestRecord Finished(int64_t index, double start_s) {
  RequestRecord record;
  record.index = index;
  record.start_s = start_s;
  record.first_token_s = start_s + 0.25;
  record.last_token_s = start_s + 1.75;
  record.end_s = start_s + 2;
  record.prompt_tokens = 10;
  record.tokens = 4;
  record.token_gaps_ms = {500, 500, 500};
  return record;
}

RequestRecord Failed(int64_t index, const absl::Status& status) {
  RequestRecord record;
  record.index = index;
  record.start_s = 1;
  record.end_s = 1.5;
  record.status = status;
  return record;
}

TEST(SummarizeTest, CountsWhatFinishedAndWhatFailed) {
  const LatencySummary summary =
      Summarize({Finished(1, 2), Finished(0, 0),
                 Failed(2, absl::ResourceExhaustedError("full")),
                 Failed(3, absl::ResourceExhaustedError("full again")),
                 Failed(4, absl::UnavailableError("gone"))},
                /*warmup=*/0, {});
  EXPECT_EQ(summary.requests, 5);
  EXPECT_EQ(summary.finished, 2);
  ASSERT_EQ(summary.failures.size(), 2u);
  const Failures& full =
      summary.failures.at(absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(full.count, 2);
  EXPECT_EQ(full.message, "full");
  EXPECT_EQ(summary.failures.at(absl::StatusCode::kUnavailable).count, 1);
  EXPECT_DOUBLE_EQ(summary.seconds, 4);
  EXPECT_DOUBLE_EQ(summary.ttft_ms.p50, 250);
  EXPECT_EQ(summary.ttft_ms.count, 2);
  EXPECT_DOUBLE_EQ(summary.end_to_end_ms.max, 2000);
  EXPECT_EQ(summary.inter_token_ms.count, 6);
  EXPECT_DOUBLE_EQ(summary.inter_token_ms.p99, 500);
  EXPECT_DOUBLE_EQ(summary.requests_per_s, 0.5);
  EXPECT_DOUBLE_EQ(summary.tokens_per_s, 2);
  EXPECT_DOUBLE_EQ(summary.prompt_tokens_per_s, 5);
  // Without limits all that finished is good.
  EXPECT_EQ(summary.good, 2);
}

TEST(SummarizeTest, LeavesTheWarmupOut) {
  const LatencySummary summary =
      Summarize({Finished(0, 0), Finished(1, 10), Finished(2, 11)}, 1, {});
  EXPECT_EQ(summary.requests, 2);
  EXPECT_DOUBLE_EQ(summary.seconds, 3);
  EXPECT_EQ(Summarize({Finished(0, 0)}, 1, {}).requests, 0);
}

TEST(SummarizeTest, GoodputNeedsBothLimits) {
  RequestRecord late = Finished(1, 2);
  late.start_s = 1.5;  // first token after 750 ms
  RequestRecord slow = Finished(2, 2);
  slow.last_token_s += 0.75;  // 750 ms between tokens
  const std::vector<RequestRecord> records = {Finished(0, 2), late, slow};
  const auto good = [&records](LatencyLimits limits) {
    return Summarize(records, 0, limits).good;
  };
  EXPECT_EQ(good({}), 3);
  EXPECT_EQ(good({.ttft_ms = 300, .itl_ms = {}}), 2);
  EXPECT_EQ(good({.ttft_ms = {}, .itl_ms = 600}), 2);
  EXPECT_EQ(good({.ttft_ms = 300, .itl_ms = 600}), 1);
  EXPECT_EQ(good({.ttft_ms = 100, .itl_ms = 600}), 0);
  // 2.5 s from the start of `late` to the end of the others.
  EXPECT_DOUBLE_EQ(
      Summarize(records, 0, {.ttft_ms = 300, .itl_ms = 600}).goodput_per_s,
      1 / 2.5);
}

}  // namespace
}  // namespace ring
