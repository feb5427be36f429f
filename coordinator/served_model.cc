#include "coordinator/served_model.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/digest.h"
#include "worker/model_files/generation_config.h"
#include "worker/model_files/model_config.h"

namespace ring {
namespace {

SamplingDefaults Defaults(const GenerationConfig& generation) {
  SamplingDefaults defaults;
  const bool greedy =
      generation.do_sample.has_value() && !*generation.do_sample;
  defaults.temperature = greedy ? 0 : generation.temperature.value_or(1);
  defaults.top_k = static_cast<int32_t>(generation.top_k.value_or(0));
  defaults.top_p = generation.top_p.value_or(1);
  defaults.min_p = generation.min_p.value_or(0);
  defaults.repetition_penalty = generation.repetition_penalty.value_or(1);
  return defaults;
}

// Ids that end a completion: the union of both files, padding ids left out.
std::vector<int32_t> EosTokenIds(const ModelConfig& config,
                                 const GenerationConfig& generation,
                                 int32_t num_token_ids) {
  std::vector<int32_t> ids;
  for (const auto* list : {&config.eos_token_ids, &generation.eos_token_ids}) {
    for (const int64_t id : *list) {
      if (id >= 0 && id < num_token_ids)
        ids.push_back(static_cast<int32_t>(id));
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::string FolderName(const std::string& model_dir) {
  std::filesystem::path path =
      std::filesystem::path(model_dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path == "." || path == "..") {
    std::error_code ignored;
    path = std::filesystem::weakly_canonical(path, ignored);
  }
  return path.filename().string();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ServedModel>> LoadServedModel(
    const std::string& model_dir) {
  auto model = std::make_unique<ServedModel>();
  RING_ASSIGN_OR_RETURN(const ModelConfigFile file, ReadModelConfig(model_dir));
  RING_ASSIGN_OR_RETURN(const GenerationConfig generation,
                        ReadGenerationConfig(model_dir));
  RING_ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(model_dir));
  absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template =
      ChatTemplate::Load(model_dir);
  if (chat_template.ok()) {
    model->chat_template = *std::move(chat_template);
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  RING_ASSIGN_OR_RETURN(model->digest, ModelDigest(model_dir));

  model->name = FolderName(model_dir);
  model->architecture = "BailingMoeLinearV2ForCausalLM";
  model->context_length = file.config.ContextLength();
  model->vocab_size = file.config.vocab_size;
  model->num_token_ids = model->tokenizer->num_token_ids();
  if (model->num_token_ids > model->vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        model_dir, ": the tokenizer has ", model->num_token_ids,
        " ids, the embedding only vocab_size = ", model->vocab_size, " rows"));
  }
  model->eos_token_ids =
      EosTokenIds(file.config, generation, model->num_token_ids);
  model->defaults = Defaults(generation);
  return model;
}

}  // namespace ring
