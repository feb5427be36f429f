#include "coordinator/cli/bench/latency_summary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ring {
namespace {

// `sorted` is not empty.
double Percentile(const std::vector<double>& sorted, int percent) {
  // Integers: 0.99 * 100 is more than 99 in floating point.
  const size_t rank = (sorted.size() * static_cast<size_t>(percent) + 99) / 100;
  return sorted[std::max<size_t>(rank, 1) - 1];
}

bool IsGood(const RequestRecord& record, const LatencyLimits& limits) {
  if (limits.ttft_ms &&
      (record.first_token_s - record.start_s) * 1e3 > *limits.ttft_ms) {
    return false;
  }
  if (!limits.itl_ms || record.tokens < 2) return true;
  const double between_ms = (record.last_token_s - record.first_token_s) * 1e3 /
                            static_cast<double>(record.tokens - 1);
  return between_ms <= *limits.itl_ms;
}

}  // namespace

Distribution Describe(std::vector<double> values) {
  Distribution result;
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  result.count = static_cast<int64_t>(values.size());
  result.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                static_cast<double>(values.size());
  result.p50 = Percentile(values, 50);
  result.p90 = Percentile(values, 90);
  result.p99 = Percentile(values, 99);
  result.max = values.back();
  return result;
}

LatencySummary Summarize(const std::vector<RequestRecord>& records,
                         int64_t warmup, const LatencyLimits& limits) {
  LatencySummary summary;
  std::vector<double> ttft_ms;
  std::vector<double> inter_token_ms;
  std::vector<double> end_to_end_ms;
  double begin_s = 0;
  double end_s = 0;
  int64_t tokens = 0;
  int64_t prompt_tokens = 0;
  for (const RequestRecord& record : records) {
    if (record.index < warmup) continue;
    begin_s = summary.requests == 0 ? record.start_s
                                    : std::min(begin_s, record.start_s);
    end_s = std::max(end_s, record.end_s);
    ++summary.requests;
    if (!record.status.ok()) {
      Failures& failures = summary.failures[record.status.code()];
      if (failures.count++ == 0) {
        failures.message = std::string(record.status.message());
      }
      continue;
    }
    ++summary.finished;
    tokens += record.tokens;
    prompt_tokens += record.prompt_tokens;
    if (record.tokens > 0) {
      ttft_ms.push_back((record.first_token_s - record.start_s) * 1e3);
    }
    end_to_end_ms.push_back((record.end_s - record.start_s) * 1e3);
    inter_token_ms.insert(inter_token_ms.end(), record.token_gaps_ms.begin(),
                          record.token_gaps_ms.end());
    if (IsGood(record, limits)) ++summary.good;
  }
  summary.ttft_ms = Describe(std::move(ttft_ms));
  summary.inter_token_ms = Describe(std::move(inter_token_ms));
  summary.end_to_end_ms = Describe(std::move(end_to_end_ms));
  summary.seconds = end_s - begin_s;
  if (summary.seconds <= 0) return summary;
  const auto per_second = [&summary](int64_t count) {
    return static_cast<double>(count) / summary.seconds;
  };
  summary.requests_per_s = per_second(summary.finished);
  summary.tokens_per_s = per_second(tokens);
  summary.prompt_tokens_per_s = per_second(prompt_tokens);
  summary.goodput_per_s = per_second(summary.good);
  return summary;
}

}  // namespace ring
