// What the requests of a load took, in figures.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace ring {

// One request, as its client saw it. Times are seconds since the start of the
// load.
struct RequestRecord {
  int64_t index = 0;   // in order of sending
  double start_s = 0;  // when it was to be sent: waits in the client count
  double first_token_s = 0;
  double last_token_s = 0;
  double end_s = 0;
  int64_t prompt_tokens = 0;
  int64_t tokens = 0;
  // One for each token after the first message's: the time between two
  // messages with tokens, shared out over the tokens of the second.
  std::vector<float> token_gaps_ms;
  absl::Status status;  // OK: finished
};

// Percentiles are exact: the smallest value that is not less than so many
// percent of all (nearest rank). All 0 when count is.
struct Distribution {
  int64_t count = 0;
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};
Distribution Describe(std::vector<double> values);

// What makes a request good.
struct LatencyLimits {
  std::optional<double> ttft_ms;  // time to its first token
  std::optional<double> itl_ms;   // its mean time between tokens
};

struct Failures {
  int64_t count = 0;
  std::string message;  // of the first
};

struct LatencySummary {
  int64_t requests = 0;
  int64_t finished = 0;
  std::map<absl::StatusCode, Failures> failures;
  // From the start of the first request to the end of the last.
  double seconds = 0;
  // Of requests that finished, in milliseconds. To the first token and to the
  // end from when the request was to be sent; between tokens one value per
  // token, as in RequestRecord.
  Distribution ttft_ms;
  Distribution inter_token_ms;
  Distribution end_to_end_ms;
  // Of requests that finished, over `seconds`.
  double requests_per_s = 0;
  double tokens_per_s = 0;
  double prompt_tokens_per_s = 0;
  // Finished within the limits.
  int64_t good = 0;
  double goodput_per_s = 0;
};

// Leaves out the first `warmup` requests in order of sending.
LatencySummary Summarize(const std::vector<RequestRecord>& records,
                         int64_t warmup, const LatencyLimits& limits);

}  // namespace ring
