// The options of a request: names, ranges and defaults, once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/served_model.h"
#include "ring/v1/inference.pb.h"

namespace ring {

// Limits that are not the range of one number.
inline constexpr int kMaxRequestIdBytes = 128;
inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr double kMaxLogitBias = 100;  // its absolute value

// The range of one numeric option, under its field name.
struct OptionLimit {
  absl::string_view name;
  double min;
  double max;
  bool min_excluded = false;
};

// Every numeric field of Sampling, Stopping and Output that has a range.
// `seed` takes any value.
absl::Span<const OptionLimit> OptionLimits();

// The options of one request, complete and in range. `max_tokens` is 0 when
// the client did not say.
struct RequestOptions {
  double temperature = 0;
  int32_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  uint64_t seed = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::vector<v1::LogitBias> logit_bias;
  int64_t max_tokens = 0;
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_token_ids;
  int32_t choices = 1;
  bool logprobs = false;
  int32_t top_logprobs = 0;
  std::optional<int32_t> prompt_logprobs;  // none: not reported
  bool special_tokens = false;
  bool split_reasoning = true;
};

// Checks everything of `request` but the prompt, and fills in defaults; a
// missing seed is drawn. INVALID_ARGUMENT names option, value and range.
absl::StatusOr<RequestOptions> ReadOptions(const v1::GenerateRequest& request,
                                           const ServedModel& model);

// The options as Accepted echoes them.
void EchoOptions(const RequestOptions& options, v1::Accepted* accepted);

}  // namespace ring
