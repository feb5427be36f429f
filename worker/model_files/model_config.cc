#include "worker/model_files/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/config_fields.h"

namespace ring {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;

// Far above any model of the family and low enough that no product of two of
// them times an element size overflows 64 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxTokens = int64_t{1} << 28;

void ReadArchitecture(FieldReader& reader) {
  const std::string supported = "BailingMoeLinearV2ForCausalLM";
  if (const Json* value = reader.Find("architectures")) {
    const bool ok = value->is_array() &&
                    std::find(value->begin(), value->end(), Json(supported)) !=
                        value->end();
    if (ok) {
      reader.Note("architectures", ValueText(*value), ConfigField::Use::kRead);
    } else {
      reader.Refuse("architectures", *value, supported);
    }
  } else {
    reader.Missing("architectures");
  }
  if (!reader.Has("model_type")) reader.Missing("model_type");
  reader.Only("model_type", "bailing_moe_linear");
}

void ReadShape(FieldReader& reader, ModelConfig* config) {
  config->hidden_size = reader.Int("hidden_size", 1, kMaxWidth);
  config->num_hidden_layers =
      static_cast<int>(reader.Int("num_hidden_layers", 1, 1024));
  config->num_attention_heads =
      static_cast<int>(reader.Int("num_attention_heads", 1, 1024));
  config->num_key_value_heads =
      static_cast<int>(reader.Int("num_key_value_heads", 1, 1024));
  config->head_dim = static_cast<int>(reader.Int("head_dim", 2, 1024));
  config->layer_group_size =
      static_cast<int>(reader.Int("layer_group_size", 1, 1024));
  config->group_norm_size =
      static_cast<int>(reader.Int("group_norm_size", 1, 1024));
  config->intermediate_size = reader.Int("intermediate_size", 1, kMaxWidth);
  config->vocab_size = reader.Int("vocab_size", 1, kMaxTokens);
  config->max_position_embeddings =
      reader.Int("max_position_embeddings", 1, kMaxTokens);
  config->num_nextn_predict_layers =
      static_cast<int>(reader.Int("num_nextn_predict_layers", 0, 16));
  config->tie_word_embeddings = reader.Bool("tie_word_embeddings", false);
}

// `use_linear_silu` wins over `linear_silu`; one of the two has to be there.
void ReadActivation(FieldReader& reader, ModelConfig* config) {
  const bool both = reader.Has("use_linear_silu");
  config->linear_silu =
      both ? reader.Bool("use_linear_silu") : reader.Bool("linear_silu");
  if (both) reader.Ignore("linear_silu");
  reader.Only("hidden_act", "silu");
}

void ReadExperts(FieldReader& reader, ModelConfig* config,
                 ModelConfigFile* report) {
  config->first_k_dense_replace =
      static_cast<int>(reader.Int("first_k_dense_replace", 0, 1024));
  config->num_experts = static_cast<int>(reader.Int("num_experts", 1, 65536));
  config->num_experts_per_tok =
      static_cast<int>(reader.Int("num_experts_per_tok", 1, 256));
  config->num_shared_experts =
      static_cast<int>(reader.Int("num_shared_experts", 1, 64));
  config->moe_intermediate_size =
      reader.Int("moe_intermediate_size", 1, kMaxWidth);
  config->n_group = static_cast<int>(reader.Int("n_group", 1, 65536));
  config->topk_group = static_cast<int>(reader.Int("topk_group", 1, 65536));
  config->norm_topk_prob = reader.Bool("norm_topk_prob", true);
  config->routed_scaling_factor =
      static_cast<float>(reader.Number("routed_scaling_factor", 1e-6, 1e6));
  reader.Only("score_function", "sigmoid");
  reader.Only("router_dtype", "fp32");
  reader.Only("moe_router_enable_expert_bias", true);
  reader.Only("moe_router_enable_routed_scaling", true);
  reader.Only("moe_router_enable_shared_expert", true);
  const std::string name = "moe_shared_expert_intermediate_size";
  if (const Json* value = reader.Find(name)) {
    reader.Note(name, ValueText(*value), ConfigField::Use::kIgnored);
    if (*value != Json(config->shared_expert_size())) {
      report->warnings.push_back(absl::StrCat(
          "config.json: ", name, " = ", ValueText(*value),
          " is not used; moe_intermediate_size x num_shared_experts = ",
          config->shared_expert_size(), " is"));
    }
  }
}

void ReadRope(FieldReader& reader, ModelConfig* config) {
  config->rope_theta = reader.Number("rope_theta", 1.0, 1e12);
  // `rotary_dim` wins over `partial_rotary_factor`; with neither, the whole
  // head rotates.
  if (reader.Has("rotary_dim")) {
    config->rotary_dim = static_cast<int>(
        reader.Int("rotary_dim", 2, std::max(config->head_dim, 2)));
    reader.Ignore("partial_rotary_factor");
  } else {
    const double factor = reader.Number("partial_rotary_factor", 1e-3, 1, 1.0);
    config->rotary_dim =
        static_cast<int>(std::floor(config->head_dim * factor));
  }
  reader.Only("linear_rope", true);
  reader.Only("rope_traditional", false);
  reader.Only("rope_interleave", false);
}

void ReadYarn(FieldReader& reader, ModelConfig* config, ModelConfigFile* report,
              std::vector<std::string>* errors) {
  const Json* value = reader.Find("rope_scaling");
  if (value == nullptr) {
    reader.Note("rope_scaling", "null", ConfigField::Use::kDefault);
    return;
  }
  if (!value->is_object()) {
    reader.Refuse("rope_scaling", *value, "null or an object of type yarn");
    return;
  }
  FieldReader yarn(*value, "rope_scaling.", report, errors);
  const std::string type = yarn.Has("rope_type") ? "rope_type" : "type";
  if (!yarn.Has(type)) yarn.Missing("rope_type");
  yarn.Only(type, "yarn");
  if (type != "type") yarn.Only("type", "yarn");
  YarnScaling scaling;
  scaling.factor = yarn.Number("factor", 1.0, 1024.0);
  scaling.original_max_position_embeddings =
      yarn.Int("original_max_position_embeddings", 1, kMaxTokens);
  scaling.beta_fast = yarn.Number("beta_fast", 1e-3, 1e6, scaling.beta_fast);
  scaling.beta_slow = yarn.Number("beta_slow", 1e-3, 1e6, scaling.beta_slow);
  scaling.attn_factor =
      yarn.Number("attn_factor", 1e-3, 1e3, scaling.attn_factor);
  scaling.extrapolation_factor =
      yarn.Number("extrapolation_factor", 0, 1, scaling.extrapolation_factor);
  yarn.RefuseRest();
  config->rope_scaling = scaling;
}

void ReadQuantization(FieldReader& reader, ModelConfig* config,
                      ModelConfigFile* report,
                      std::vector<std::string>* errors) {
  reader.Only("quantization", nullptr);
  reader.Only("compression_config", nullptr);
  const Json* value = reader.Find("quantization_config");
  if (value == nullptr) {
    reader.Note("quantization_config", "null", ConfigField::Use::kDefault);
    return;
  }
  const std::string supported =
      "none, or fp8 with fmt e4m3 and weight_block_size [128,128]";
  if (!value->is_object()) {
    reader.Refuse("quantization_config", *value, supported);
    return;
  }
  FieldReader fp8(*value, "quantization_config.", report, errors);
  const Json* method = fp8.Find("quant_method");
  if (method == nullptr) {
    fp8.Missing("quant_method");
    return;
  }
  if (*method != Json("fp8")) {
    fp8.Refuse("quant_method", *method, supported);
    return;
  }
  fp8.Note("quant_method", ValueText(*method), ConfigField::Use::kRead);
  fp8.Only("fmt", "e4m3");
  fp8.Only("activation_scheme", "dynamic");
  if (!fp8.Has("weight_block_size")) fp8.Missing("weight_block_size");
  fp8.Only("weight_block_size", Json::array({128, 128}));
  // Which matrices are quantised is decided per tensor, by its scales.
  fp8.Ignore("modules_to_not_convert");
  fp8.Ignore("ignored_layers");
  fp8.WarnAboutRest();
  config->quantization = Quantization::kBlockFp8;
}

void ReadTokenIds(FieldReader& reader, ModelConfig* config) {
  const Json* value = reader.Find("eos_token_id");
  if (value != nullptr) {
    const Json list = value->is_array() ? *value : Json::array({*value});
    for (const Json& id : list) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
          id.get<int64_t>() >= config->vocab_size) {
        reader.Refuse("eos_token_id", *value,
                      "token ids below vocab_size, one or a list");
        return;
      }
      config->eos_token_ids.push_back(id.get<int64_t>());
    }
    reader.Note("eos_token_id", ValueText(*value), ConfigField::Use::kRead);
  }
  reader.Ignore("bos_token_id");
  reader.Ignore("pad_token_id");
}

// Switches of this and of sibling families with one implemented setting, and
// fields that training code leaves behind.
void ReadSwitches(FieldReader& reader) {
  reader.Only("use_qk_norm", true);
  reader.Only("use_qkv_bias", false);
  reader.Only("use_bias", false);
  reader.Only("use_rmsnorm", true);
  reader.Only("norm_head", false);
  reader.Only("sliding_window", nullptr);
  reader.Only("use_sliding_window", false);
  reader.Only("using_split_qkv_in_self_attention", false);
  reader.Only("rope_parameters", nullptr);
  for (const char* name :
       {"linear_backend", "attention_dropout", "embedding_dropout",
        "output_dropout", "max_window_layers", "initializer_range", "use_cache",
        "torch_dtype", "dtype", "transformers_version", "auto_map",
        "_name_or_path", "output_router_logits", "router_aux_loss_coef"}) {
    reader.Ignore(name);
  }
}

// What the architecture asks of the numbers together.
void CheckTogether(const ModelConfig& c, std::vector<std::string>* errors) {
  const auto divides = [&](const char* a_name, int64_t a, const char* b_name,
                           int64_t b) {
    if (b % a == 0) return;
    errors->push_back(
        absl::StrCat(a_name, " = ", a, " does not divide ", b_name, " = ", b));
  };
  divides("num_key_value_heads", c.num_key_value_heads, "num_attention_heads",
          c.num_attention_heads);
  divides("group_norm_size", c.group_norm_size,
          "num_attention_heads x head_dim", c.query_size());
  divides("n_group", c.n_group, "num_experts", c.num_experts);
  if (c.rotary_dim % 2 != 0 || c.rotary_dim < 2) {
    errors->push_back(absl::StrCat("rotary_dim = ", c.rotary_dim,
                                   " (or head_dim x partial_rotary_factor) is "
                                   "not an even number above 0"));
  }
  if (c.first_k_dense_replace > c.num_hidden_layers) {
    errors->push_back(
        absl::StrCat("first_k_dense_replace = ", c.first_k_dense_replace,
                     " is above num_hidden_layers = ", c.num_hidden_layers));
  }
  if (c.topk_group > c.n_group) {
    errors->push_back(absl::StrCat("topk_group = ", c.topk_group,
                                   " is above n_group = ", c.n_group));
  }
  const int group = c.num_experts / c.n_group;
  if (group < 2) {
    // The score of a group is the sum of its two best experts.
    errors->push_back(absl::StrCat("n_group = ", c.n_group,
                                   " of num_experts = ", c.num_experts,
                                   " leaves fewer than 2 experts in a group"));
  } else if (c.num_experts_per_tok > c.topk_group * group) {
    errors->push_back(
        absl::StrCat("num_experts_per_tok = ", c.num_experts_per_tok,
                     " is above the ", c.topk_group * group,
                     " experts of topk_group = ", c.topk_group, " groups"));
  }
}

absl::Status ToStatus(const std::vector<std::string>& errors) {
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ", absl::StrJoin(errors, "; ")));
}

}  // namespace

int64_t ModelConfig::ContextLength() const {
  if (!rope_scaling.has_value()) return max_position_embeddings;
  const auto trained =
      static_cast<double>(rope_scaling->original_max_position_embeddings);
  return std::max(max_position_embeddings,
                  static_cast<int64_t>(rope_scaling->factor * trained));
}

absl::StatusOr<ModelConfigFile> ParseModelConfig(const Json& json) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError("config.json: not a JSON object");
  }
  ModelConfigFile file;
  std::vector<std::string> errors;
  FieldReader reader(json, "", &file, &errors);
  ReadArchitecture(reader);
  // Another family is refused for what it is, not for its field names.
  RING_RETURN_IF_ERROR(ToStatus(errors));
  ReadShape(reader, &file.config);
  ReadActivation(reader, &file.config);
  ReadExperts(reader, &file.config, &file);
  file.config.rms_norm_eps =
      static_cast<float>(reader.Number("rms_norm_eps", 1e-12, 1.0));
  ReadRope(reader, &file.config);
  ReadYarn(reader, &file.config, &file, &errors);
  ReadTokenIds(reader, &file.config);
  ReadQuantization(reader, &file.config, &file, &errors);
  ReadSwitches(reader);
  reader.WarnAboutRest();
  RING_RETURN_IF_ERROR(ToStatus(errors));
  CheckTogether(file.config, &errors);
  RING_RETURN_IF_ERROR(ToStatus(errors));
  return file;
}

absl::StatusOr<ModelConfigFile> ReadModelConfig(const std::string& model_dir) {
  RING_ASSIGN_OR_RETURN(
      const Json json,
      ReadJsonFile(absl::StrCat(model_dir, "/config.json"), kMaxConfigBytes));
  return ParseModelConfig(json);
}

std::vector<double> HeadSlopes(int heads) {
  RING_CHECK_GT(heads, 0);
  int power = 1;
  while (power * 2 <= heads) power *= 2;
  std::vector<double> slopes;
  for (int a = 0; a < power; ++a) {
    slopes.push_back(std::exp2(-8.0 * (a + 1) / power));
  }
  for (int a = 0; power + a < heads; ++a) {
    slopes.push_back(std::exp2(-8.0 * (2 * a + 1) / (2 * power)));
  }
  return slopes;
}

std::vector<float> LayerDecayRates(const ModelConfig& config, int layer,
                                   DecayMode mode) {
  RING_CHECK(!config.IsSoftmaxLayer(layer)) << "layer " << layer;
  // A linear layer is never alone: num_hidden_layers > 1.
  const int step = mode == DecayMode::kIndex ? layer : layer - 1;
  const double factor =
      1.0 - static_cast<double>(step) / (config.num_hidden_layers - 1) + 1e-5;
  std::vector<float> rates;
  for (double slope : HeadSlopes(config.num_attention_heads)) {
    rates.push_back(static_cast<float>(slope * factor));
  }
  return rates;
}

}  // namespace ring
