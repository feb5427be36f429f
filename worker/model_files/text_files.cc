#include "worker/model_files/text_files.h"

#include <algorithm>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

constexpr int64_t kMaxTemplateBytes = int64_t{4} << 20;

absl::Status Bad(absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", problem));
}

// Notes an id of the tokenizer, or says why it is none.
absl::Status AddId(const std::string& token, const Json& id, int64_t vocab_size,
                   std::set<int64_t>* ids) {
  if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
      id.get<int64_t>() >= vocab_size) {
    return Bad(absl::StrCat("token \"", token,
                            "\" has an id that is not in [0, ", vocab_size,
                            "), the vocab_size of config.json"));
  }
  ids->insert(id.get<int64_t>());
  return absl::OkStatus();
}

absl::Status CheckTokenizer(const Json& json, const ModelConfig& config,
                            TextFiles* result) {
  if (!json.is_object() || !json.contains("model") ||
      !json["model"].is_object()) {
    return Bad("has no object \"model\"");
  }
  const Json& model = json["model"];
  if (model.value("type", Json()) != Json("BPE")) {
    return Bad("model.type is not supported (supported: \"BPE\")");
  }
  if (!model.contains("vocab") || !model["vocab"].is_object() ||
      !model.contains("merges") || !model["merges"].is_array()) {
    return Bad("model has no object \"vocab\" and list \"merges\"");
  }
  std::set<int64_t> ids;
  for (const auto& [token, id] : model["vocab"].items()) {
    RING_RETURN_IF_ERROR(AddId(token, id, config.vocab_size, &ids));
  }
  const Json added = json.value("added_tokens", Json::array());
  if (!added.is_array()) return Bad("added_tokens is not a list");
  for (const Json& token : added) {
    if (!token.is_object() || !token.contains("content") ||
        !token["content"].is_string()) {
      return Bad("added_tokens has an entry without content");
    }
    RING_RETURN_IF_ERROR(AddId(token["content"].get<std::string>(),
                               token.value("id", Json()), config.vocab_size,
                               &ids));
  }
  if (ids.empty()) return Bad("knows no token");
  for (int64_t eos : config.eos_token_ids) {
    if (ids.count(eos) == 0) {
      return Bad(
          absl::StrCat("does not know eos_token_id ", eos, " of config.json"));
    }
  }
  result->num_token_ids = *ids.rbegin() + 1;
  result->merges = static_cast<int64_t>(model["merges"].size());
  result->added_tokens = static_cast<int64_t>(added.size());
  return absl::OkStatus();
}

// chat_template.jinja wins over the field of tokenizer_config.json.
absl::StatusOr<std::string> FindChatTemplate(const std::string& model_dir) {
  const auto jinja = ReadTextFile(
      absl::StrCat(model_dir, "/chat_template.jinja"), kMaxTemplateBytes);
  if (jinja.ok()) return std::string("chat_template.jinja");
  if (!absl::IsNotFound(jinja.status())) return jinja.status();
  const auto json =
      ReadJsonFile(absl::StrCat(model_dir, "/tokenizer_config.json"));
  if (absl::IsNotFound(json.status())) return std::string();
  RING_RETURN_IF_ERROR(json.status());
  if (!json->is_object()) {
    return absl::InvalidArgumentError(
        "tokenizer_config.json: not a JSON object");
  }
  const Json text = json->value("chat_template", Json());
  if (text.is_null()) return std::string();
  if (!text.is_string()) {
    return absl::InvalidArgumentError(
        "tokenizer_config.json: chat_template is not supported (supported: one "
        "template as a string)");
  }
  return std::string("tokenizer_config.json");
}

}  // namespace

absl::StatusOr<TextFiles> CheckTextFiles(const std::string& model_dir,
                                         const ModelConfig& config) {
  TextFiles result;
  RING_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(absl::StrCat(
                                             model_dir, "/tokenizer.json")));
  RING_RETURN_IF_ERROR(CheckTokenizer(json, config, &result));
  RING_ASSIGN_OR_RETURN(result.chat_template_file, FindChatTemplate(model_dir));
  return result;
}

}  // namespace ring
