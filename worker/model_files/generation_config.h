// generation_config.json: what a model's authors recommend for sampling.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model_files/json.h"

namespace ring {

// Absent fields stay empty; the caller has the defaults. Immutable.
struct GenerationConfig {
  std::vector<int64_t> eos_token_ids;  // one or a list in the file
  std::optional<bool> do_sample;       // false: greedy
  std::optional<double> temperature;
  std::optional<double> top_p;               // (0, 1]
  std::optional<double> min_p;               // [0, 1]
  std::optional<int64_t> top_k;              // 0: off
  std::optional<double> repetition_penalty;  // [0.001, 10]
  std::optional<int64_t> max_new_tokens;
};

// INVALID_ARGUMENT names a field with a value that has no meaning and the
// values that have. Fields that are not in the struct are ignored.
absl::StatusOr<GenerationConfig> ParseGenerationConfig(const Json& json);

// Reads `model_dir`/generation_config.json. A missing file is an empty config.
absl::StatusOr<GenerationConfig> ReadGenerationConfig(
    const std::string& model_dir);

}  // namespace ring
