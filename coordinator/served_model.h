// The model as the coordinator knows it: text, limits and defaults. Weights
// are the worker groups' business.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace ring {

// What a request without sampling options gets.
struct SamplingDefaults {
  double temperature = 1;
  int32_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
};

// Immutable after loading, so usable from any thread.
struct ServedModel {
  std::string name;            // last part of the folder's path
  std::string digest;          // groups must have the same
  std::string architecture;    // Hugging Face name
  int64_t context_length = 0;  // prompt and completion, in tokens
  int64_t vocab_size = 0;      // rows of the embedding, padding included
  int32_t num_token_ids = 0;   // ids below this can appear
  std::vector<int32_t> eos_token_ids;  // of config and generation config
  SamplingDefaults defaults;
  std::unique_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<const ChatTemplate> chat_template;  // null: none shipped
};

// Reads config.json, generation_config.json, the tokenizer and the chat
// template of `model_dir`, and digests the checkpoint's headers; no tensor
// data. Errors are those of the readers and name the file.
absl::StatusOr<std::unique_ptr<const ServedModel>> LoadServedModel(
    const std::string& model_dir);

}  // namespace ring
