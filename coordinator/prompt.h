// From the three kinds of prompt to token ids.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/served_model.h"
#include "ring/v1/inference.pb.h"

namespace ring {

struct Prompt {
  std::vector<int32_t> ids;
  // What was tokenized; empty for a prompt of token ids.
  std::string text;
  // The completion begins inside the model's reasoning.
  bool starts_in_thinking = false;
};

// Renders, tokenizes and checks the prompt of a request. Text of a chat becomes
// a control token only with parse_special. INVALID_ARGUMENT: no
// prompt, an empty one, an id that no token has, a template that refuses the
// messages, or a prompt that leaves no room in the context for max_tokens, or
// for one token; with the numbers.
absl::StatusOr<Prompt> ReadPrompt(const v1::GenerateRequest& request,
                                  const ServedModel& model);

// The same for Tokenize, without the limit of the context.
absl::StatusOr<Prompt> ReadPrompt(const v1::TokenizeRequest& request,
                                  const ServedModel& model);

}  // namespace ring
