#include "worker/text_check.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "kernels/base/status_macros.h"

namespace ring {

absl::StatusOr<std::vector<std::string>> CheckText(const std::string& model_dir,
                                                   const ModelConfig& config) {
  RING_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                        Tokenizer::Load(model_dir));
  const int32_t num_ids = tokenizer->num_token_ids();
  if (num_ids > config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.json: the largest id is ", num_ids - 1,
        ", but the embedding has vocab_size = ", config.vocab_size, " rows"));
  }
  // What an id stands for that no token has.
  const absl::string_view none = tokenizer->TokenBytes(-1);
  for (const int64_t eos : config.eos_token_ids) {
    if (eos >= num_ids ||
        tokenizer->TokenBytes(static_cast<int32_t>(eos)) == none) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: has no token ", eos,
                       ", which config.json names as eos_token_id"));
    }
  }
  const auto chat_template = ChatTemplate::Load(model_dir);
  if (!chat_template.ok() && !absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  return std::vector<std::string>{
      absl::StrCat("tokenizer    BPE, ids up to ", num_ids - 1, " of ",
                   config.vocab_size),
      chat_template.ok()
          ? absl::StrCat("template     ", (*chat_template)->source().size(),
                         " bytes of Jinja, all of it supported")
          : "template     none: prompts go in as raw text"};
}

}  // namespace ring
