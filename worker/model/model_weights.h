// Every tensor of one rank's shard of the model, on one page.
//
// Local sizes, for a rank of a tensor-parallel group of `tp` ranks:
//   heads     = num_attention_heads / tp           query heads (linear: also
//                                                   its key and value heads)
//   kv_heads  = max(1, num_key_value_heads / tp)   of softmax layers
//   vocab     = at most ceil(vocab_size / tp)       rows of this rank
//   inner     = intermediate_size / tp             dense MLP
//   D = head_dim, I = moe_intermediate_size
// All matrices are [outputs, inputs], as stored. Vectors are fp32 whatever
// the checkpoint has.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

struct AttentionWeights {
  // Rows [Q | K | V] of this rank's heads.
  // softmax: [(heads + 2 * kv_heads) * D, hidden_size]
  // linear:  [3 * heads * D, hidden_size]
  WeightMatrix query_key_value;
  absl::Span<const float> query_layernorm;  // [D], shared by all heads
  absl::Span<const float> key_layernorm;    // [D]
  WeightMatrix dense;  // [hidden_size, heads * D]; its output is a partial sum

  // Linear layers only, empty otherwise.
  WeightMatrix g_proj;                  // [heads * D, hidden_size]
  absl::Span<const float> g_norm;       // [heads * D]
  absl::Span<const float> decay_rates;  // [heads]: s of lambda = exp(-s)
};

struct MoeWeights {
  WeightMatrix router;  // [num_experts, hidden_size] bf16 or f32
  absl::Span<const float> expert_bias;  // [num_experts]
  // The experts of this rank, in the order of ShardSpec::experts. Whole
  // (inner = I), or with sliced experts I / tp of every expert. Those of one
  // kind lie at equal distances, and so do their scales.
  std::vector<GatedMlpWeights> experts;
  // Held whole by every rank: inner = I * num_shared_experts.
  GatedMlpWeights shared_expert;
  // This rank's 1 / tp of it, inside the same memory: inner rows
  // [tp_rank * inner / tp, (tp_rank + 1) * inner / tp).
  GatedMlpWeights shared_expert_slice;
};

struct LayerWeights {
  absl::Span<const float> input_layernorm;  // [hidden_size]
  AttentionWeights attention;
  absl::Span<const float> post_attention_layernorm;  // [hidden_size]
  GatedMlpWeights dense_mlp;  // layers < first_k_dense_replace, else empty
  MoeWeights moe;             // the other layers, else empty
};

struct ModelWeights {
  // Row i is token vocab_begin + i.
  int64_t vocab_begin = 0;
  WeightMatrix word_embeddings;      // [vocab, hidden_size]
  std::vector<LayerWeights> layers;  // [num_hidden_layers]
  absl::Span<const float> norm;      // [hidden_size], the final norm
  WeightMatrix lm_head;              // [vocab, hidden_size]
};

}  // namespace ring
