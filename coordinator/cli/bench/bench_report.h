// The results of a benchmark for people, scripts and pictures.
#pragma once

#include <string>
#include <vector>

#include "coordinator/cli/bench/latency_summary.h"
#include "coordinator/cli/bench/svg_plot.h"
#include "nlohmann/json.hpp"

namespace ring {

// One load and what came of it.
struct LoadResult {
  enum class Kind { kConcurrency, kRate, kTrace };
  Kind kind = Kind::kConcurrency;
  // Requests in flight, or requests per second asked for; unused for a trace.
  double value = 0;
  LatencySummary summary;
};

// "4 requests in flight", "2.5 requests/s", "trace".
std::string LoadName(LoadResult::Kind kind, double value);

// Several lines.
std::string ResultText(const LoadResult& result, const LatencyLimits& limits);

nlohmann::ordered_json ResultJson(const LoadResult& result);

// Latencies against load. A trace stands where its finished requests per
// second are.
std::vector<Plot> ResultPlots(const std::vector<LoadResult>& results);

}  // namespace ring
