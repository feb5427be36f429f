// config.json of a Ring-linear model: every field read, checked and reported.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/model_files/json.h"

namespace ring {

// `rope_scaling` of type yarn: positions beyond the trained window.
struct YarnScaling {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double attn_factor = 1;
  double extrapolation_factor = 1;
};

// How the weights of the big matrices are stored.
enum class Quantization {
  kNone,
  kBlockFp8,  // e4m3 with one fp32 scale per 128 x 128 block
};

// The model's shape and constants, under their Hugging Face names. A value of
// this type that came out of ParseModelConfig is consistent: counts are
// positive and bounded, and every divisibility that the architecture asks for
// holds. Immutable after parsing.
struct ModelConfig {
  int64_t hidden_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;  // of softmax layers
  int head_dim = 0;
  int layer_group_size = 0;  // the last layer of each group is softmax
  int group_norm_size = 0;   // NUMBER of groups of g_norm, not their width
  bool linear_silu = false;  // silu on q, k, v of linear layers

  int64_t intermediate_size = 0;  // of dense layers
  int first_k_dense_replace = 0;  // layers below this have a dense MLP
  int num_experts = 0;
  int num_experts_per_tok = 0;
  int num_shared_experts = 0;
  int64_t moe_intermediate_size = 0;  // of one expert
  int n_group = 0;                    // groups of neighbouring experts
  int topk_group = 0;                 // groups kept for a token
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;

  float rms_norm_eps = 0;
  int rotary_dim = 0;     // leading entries of each head that rotate, even
  double rope_theta = 0;  // the exponent runs over rotary_dim
  std::optional<YarnScaling> rope_scaling;
  int64_t max_position_embeddings = 0;

  int64_t vocab_size = 0;  // rows of the embedding, padding included
  std::vector<int64_t> eos_token_ids;  // one or a list; empty when absent
  bool tie_word_embeddings = false;
  int num_nextn_predict_layers = 0;  // extra layers, not run
  Quantization quantization = Quantization::kNone;

  // Longest sequence, prompt and completion: with YaRN a multiple of the window
  // that was trained.
  int64_t ContextLength() const;

  // Full softmax attention: the last layer of each full group, and every
  // layer after the last full group. The others are linear.
  bool IsSoftmaxLayer(int layer) const {
    return (layer + 1) % layer_group_size == 0 ||
           layer >= num_hidden_layers / layer_group_size * layer_group_size;
  }
  // A dense MLP instead of experts.
  bool IsDenseLayer(int layer) const { return layer < first_k_dense_replace; }

  int64_t query_size() const { return int64_t{num_attention_heads} * head_dim; }
  int64_t kv_size() const { return int64_t{num_key_value_heads} * head_dim; }
  // Rows of query_key_value. Linear layers have a key and a value head for
  // every query head.
  int64_t QkvRows(int layer) const {
    return IsSoftmaxLayer(layer) ? query_size() + 2 * kv_size()
                                 : 3 * query_size();
  }
  int64_t shared_expert_size() const {
    return moe_intermediate_size * num_shared_experts;
  }
};

// One line of the report about config.json.
struct ConfigField {
  enum class Use {
    kRead,     // present, decides something
    kDefault,  // absent, this value is used
    kIgnored,  // present, known to have no meaning at inference
    kUnknown,  // present, not known: has a warning
  };
  std::string name;
  std::string value;  // as JSON
  Use use = Use::kRead;
};

struct ModelConfigFile {
  ModelConfig config;
  std::vector<ConfigField> fields;  // in the order they are checked
  std::vector<std::string> warnings;
};

// Checks a parsed config.json. INVALID_ARGUMENT names a missing field, or a
// field, its value and what is supported. All problems of the fields are found
// in one pass and joined by "; ". Fields that are not known give a warning.
absl::StatusOr<ModelConfigFile> ParseModelConfig(const Json& json);

// Reads `model_dir`/config.json; also NOT_FOUND.
absl::StatusOr<ModelConfigFile> ReadModelConfig(const std::string& model_dir);

// How the decay of the linear layers shrinks with depth, for layer l of N:
//   kIndex:   1 - l / (N - 1) + 1e-5
//   kIndexM1: 1 - (l - 1) / (N - 1) + 1e-5
// Implementations of the family differ. kIndex is that of the vendor's
// serving engine; kIndexM1 that of the Hugging Face code.
enum class DecayMode { kIndex, kIndexM1 };

// Base decay rates of all heads (ALiBi slopes): 2^(-8 (a + 1) / heads) for a
// power of two. Else the slopes of the largest power of two p below `heads`,
// then every second slope of 2p heads.
std::vector<double> HeadSlopes(int heads);

// The rates s of lambda = exp(-s) for all heads of `layer`, a global layer
// number. Ranks take their slice of this table: [num_attention_heads].
// REQUIRES: `layer` is a linear attention layer.
std::vector<float> LayerDecayRates(const ModelConfig& config, int layer,
                                   DecayMode mode);

}  // namespace ring
