#include "worker/model/linear_attention_layer.h"

#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/linear/linear.h"
#include "parallel/mesh.h"

namespace ring {

GroupScale LinearAttentionForward(const StepContext& step, int layer,
                                  const AttentionWeights& weights,
                                  const void* normed, float* partial) {
  const Workspace& w = step.workspace;

  LinearArgs project;
  project.x = normed;
  project.x_dtype = step.activation_dtype;
  project.rows = step.inputs.rows;
  project.decode_rows = step.inputs.streamed_rows;
  project.weight = weights.query_key_value;
  project.y = w.qkv;
  project.also = weights.g_proj;
  project.also_y = w.gate;
  step.backend.Linear(project);

  LightningAttentionArgs attend;
  attend.qkv = w.qkv;
  attend.gate = w.gate;
  attend.rows = step.inputs.rows;
  attend.num_heads = static_cast<int>(step.mesh.heads().size());
  attend.head_dim = step.config.head_dim;
  attend.silu = step.config.linear_silu;
  attend.q_norm = weights.query_layernorm.data();
  attend.k_norm = weights.key_layernorm.data();
  attend.eps = step.config.rms_norm_eps;
  attend.rope = step.rope;
  attend.decay_rates = weights.decay_rates.data();
  attend.segments = step.inputs.segments;
  attend.states = step.cache.States(layer);
  attend.g_norm = weights.g_norm.data();
  const bool group_spans_ranks = step.mesh.ranks_per_norm_group() > 1;
  attend.groups =
      group_spans_ranks ? 0 : static_cast<int>(step.mesh.norm_groups().size());
  attend.sum_of_squares = w.sum_of_squares;
  attend.out = w.attention;
  attend.out_dtype = step.activation_dtype;
  attend.workspace = w.lightning;
  step.backend.LightningAttention(attend);

  LinearArgs dense = WithoutAlso(project);
  dense.x = w.attention;
  dense.weight = weights.dense;
  dense.y = partial;
  step.backend.Linear(dense);

  GroupScale scale;
  if (group_spans_ranks) {
    scale.sum_of_squares = w.sum_of_squares;
    scale.ranks_per_group = step.mesh.ranks_per_norm_group();
    scale.group_width = step.config.query_size() / step.config.group_norm_size;
    scale.eps = step.config.rms_norm_eps;
  }
  return scale;
}

}  // namespace ring
