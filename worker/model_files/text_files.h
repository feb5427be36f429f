// A first look at tokenizer and chat template, enough to say whether a model
// folder is complete. coordinator/text reads and runs them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model_files/model_config.h"

namespace ring {

struct TextFiles {
  int64_t num_token_ids = 0;  // 1 + the largest id that the tokenizer knows
  int64_t merges = 0;
  int64_t added_tokens = 0;
  // The file the chat template is in; empty when the model has none.
  std::string chat_template_file;
};

// Checks that tokenizer.json is a BPE tokenizer whose ids fit vocab_size, that
// it knows the eos ids, and that a chat template, where there is one, is text.
// NOT_FOUND when tokenizer.json is missing; INVALID_ARGUMENT names file,
// entry and limit.
absl::StatusOr<TextFiles> CheckTextFiles(const std::string& model_dir,
                                         const ModelConfig& config);

}  // namespace ring
