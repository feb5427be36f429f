// Tokenizer and chat template in `ring-worker --check`.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model_files/model_config.h"

namespace ring {

// Loads both as the coordinator does, so the verdict is its verdict: lines for
// the report, or its error. Besides, the tokenizer's ids have rows in the
// embedding, and the end-of-sequence ids of config.json are tokens:
// INVALID_ARGUMENT names id and limit. A model without a template passes.
absl::StatusOr<std::vector<std::string>> CheckText(const std::string& model_dir,
                                                   const ModelConfig& config);

}  // namespace ring
