#include "coordinator/cli/bench/bench_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/status.h"

namespace ring {
namespace {

std::string Row(const char* name, const Distribution& values) {
  if (values.count == 0) return "";
  return absl::StrFormat("  %-20s %10.2f %10.2f %10.2f %10.2f\n", name,
                         values.p50, values.p90, values.p99, values.max);
}

nlohmann::ordered_json Json(const Distribution& values) {
  return {{"count", values.count}, {"mean", values.mean}, {"p50", values.p50},
          {"p90", values.p90},     {"p99", values.p99},   {"max", values.max}};
}

double Load(const LoadResult& result) {
  return result.kind == LoadResult::Kind::kTrace ? result.summary.requests_per_s
                                                 : result.value;
}

Plot MakePlot(const std::vector<LoadResult>& results, const std::string& title,
              Distribution LatencySummary::*latency) {
  struct Line {
    const char* name;
    double Distribution::*percentile;
  };
  const bool concurrency =
      !results.empty() && results[0].kind == LoadResult::Kind::kConcurrency;
  Plot plot{.title = title,
            .x_label = concurrency ? "requests in flight" : "requests/s",
            .y_label = "ms",
            .series = {}};
  for (const Line& line :
       {Line{"p50", &Distribution::p50}, Line{"p90", &Distribution::p90},
        Line{"p99", &Distribution::p99}}) {
    Series series{line.name, {}};
    for (const LoadResult& result : results) {
      const Distribution& values = result.summary.*latency;
      if (values.count == 0) continue;
      series.points.emplace_back(Load(result), values.*line.percentile);
    }
    std::sort(series.points.begin(), series.points.end());
    plot.series.push_back(std::move(series));
  }
  return plot;
}

}  // namespace

std::string LoadName(LoadResult::Kind kind, double value) {
  switch (kind) {
    case LoadResult::Kind::kConcurrency:
      return absl::StrCat(value, value == 1 ? " request" : " requests",
                          " in flight");
    case LoadResult::Kind::kRate:
      return absl::StrCat(value, " requests/s");
    case LoadResult::Kind::kTrace:
      break;
  }
  return "trace";
}

std::string ResultText(const LoadResult& result, const LatencyLimits& limits) {
  const LatencySummary& summary = result.summary;
  std::string text =
      absl::StrFormat("%s: %d of %d requests finished in %.1f s\n",
                      LoadName(result.kind, result.value), summary.finished,
                      summary.requests, summary.seconds);
  if (summary.finished > 0) {
    absl::StrAppendFormat(&text, "  %-20s %10s %10s %10s %10s\n", "ms", "p50",
                          "p90", "p99", "max");
  }
  absl::StrAppend(&text, Row("first token", summary.ttft_ms),
                  Row("between tokens", summary.inter_token_ms),
                  Row("end to end", summary.end_to_end_ms));
  absl::StrAppendFormat(
      &text, "  %.1f tokens/s, %.1f prompt tokens/s, %.2f requests/s\n",
      summary.tokens_per_s, summary.prompt_tokens_per_s,
      summary.requests_per_s);
  if (limits.ttft_ms || limits.itl_ms) {
    absl::StrAppendFormat(
        &text, "  goodput: %.2f requests/s, %d of %d within the limits\n",
        summary.goodput_per_s, summary.good, summary.requests);
  }
  for (const auto& [code, failures] : summary.failures) {
    absl::StrAppendFormat(&text, "  failed: %d with %s, the first: %s\n",
                          failures.count, CodeName(code), failures.message);
  }
  return text;
}

nlohmann::ordered_json ResultJson(const LoadResult& result) {
  const LatencySummary& summary = result.summary;
  nlohmann::ordered_json json;
  switch (result.kind) {
    case LoadResult::Kind::kConcurrency:
      json["concurrency"] = static_cast<int64_t>(result.value);
      break;
    case LoadResult::Kind::kRate:
      json["rate"] = result.value;
      break;
    case LoadResult::Kind::kTrace:
      break;
  }
  json["requests"] = summary.requests;
  json["finished"] = summary.finished;
  json["failures"] = nlohmann::ordered_json::object();
  for (const auto& [code, failures] : summary.failures) {
    json["failures"][CodeName(code)] = failures.count;
  }
  json["seconds"] = summary.seconds;
  json["ttft_ms"] = Json(summary.ttft_ms);
  json["inter_token_ms"] = Json(summary.inter_token_ms);
  json["end_to_end_ms"] = Json(summary.end_to_end_ms);
  json["requests_per_s"] = summary.requests_per_s;
  json["tokens_per_s"] = summary.tokens_per_s;
  json["prompt_tokens_per_s"] = summary.prompt_tokens_per_s;
  json["good"] = summary.good;
  json["goodput_per_s"] = summary.goodput_per_s;
  return json;
}

std::vector<Plot> ResultPlots(const std::vector<LoadResult>& results) {
  return {
      MakePlot(results, "Time to first token", &LatencySummary::ttft_ms),
      MakePlot(results, "Time between tokens", &LatencySummary::inter_token_ms),
      MakePlot(results, "End to end", &LatencySummary::end_to_end_ms)};
}

}  // namespace ring
