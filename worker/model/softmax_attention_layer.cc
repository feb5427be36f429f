#include "worker/model/softmax_attention_layer.h"

#include "kernels/linear/linear.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/mesh.h"

namespace ring {

void SoftmaxAttentionForward(const StepContext& step, int layer,
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
  step.backend.Linear(project);

  PagedAttentionArgs attend;
  attend.qkv = w.qkv;
  attend.rows = step.inputs.rows;
  attend.num_heads = static_cast<int>(step.mesh.heads().size());
  attend.num_kv_heads = static_cast<int>(step.mesh.kv_heads().size());
  attend.head_dim = step.config.head_dim;
  attend.q_norm = weights.query_layernorm.data();
  attend.k_norm = weights.key_layernorm.data();
  attend.eps = step.config.rms_norm_eps;
  attend.rope = step.rope;
  attend.segments = step.inputs.segments;
  attend.k_pages = step.cache.KeyPages(layer);
  attend.v_pages = step.cache.ValuePages(layer);
  attend.kv_dtype = step.cache.kv_dtype();
  attend.out = w.attention;
  attend.out_dtype = step.activation_dtype;
  step.backend.PagedAttention(attend);

  LinearArgs dense = project;
  dense.x = w.attention;
  dense.weight = weights.dense;
  dense.y = partial;
  step.backend.Linear(dense);
}

}  // namespace ring
