#include "worker/model/hybrid_model.h"

#include "kernels/base/status_macros.h"
#include "kernels/elementwise/embedding.h"
#include "kernels/elementwise/scatter.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/linear/linear.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"
#include "worker/model/linear_attention_layer.h"
#include "worker/model/softmax_attention_layer.h"

namespace ring {
namespace {

RopeFrequencies FrequenciesOf(const ModelConfig& config) {
  RopeParameters p;
  p.rotary_dim = config.rotary_dim;
  p.theta = config.rope_theta;
  if (config.rope_scaling.has_value()) {
    const YarnScaling& yarn = *config.rope_scaling;
    p.factor = yarn.factor;
    p.original_max_position_embeddings =
        static_cast<double>(yarn.original_max_position_embeddings);
    p.beta_fast = yarn.beta_fast;
    p.beta_slow = yarn.beta_slow;
    p.attn_factor = yarn.attn_factor;
    p.extrapolation_factor = yarn.extrapolation_factor;
  }
  return MakeRopeFrequencies(p);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HybridModel>> HybridModel::Create(
    const Parts& parts, const Limits& limits) {
  std::unique_ptr<HybridModel> model(new HybridModel(parts, limits));
  const ModelConfig& config = *parts.config;
  const Mesh& mesh = *parts.mesh;
  Backend* const backend = parts.backend;

  // Slices are as equal as possible.
  const int slices = parts.placement->sliced() ? mesh.tp() : 1;
  const int64_t inner = config.moe_intermediate_size;
  RING_ASSIGN_OR_RETURN(
      model->workspace_,
      Workspace::Create(config, mesh,
                        {.max_rows = limits.max_rows,
                         .max_samples = limits.max_samples,
                         .expert_inner = (inner + slices - 1) / slices,
                         .activation_dtype = limits.activation_dtype},
                        backend));
  RING_ASSIGN_OR_RETURN(
      model->stream_,
      ResidualStream::Create({limits.max_rows, config.hidden_size,
                              config.rms_norm_eps, limits.activation_dtype},
                             mesh, parts.tp, backend));
  RING_ASSIGN_OR_RETURN(
      model->moe_,
      MoeRunner::Create(config, mesh, *parts.placement, {parts.world, parts.dp},
                        limits.max_rows, limits.activation_dtype, backend));

  const RopeFrequencies rope = FrequenciesOf(config);
  const int64_t bytes =
      static_cast<int64_t>(rope.frequency.size() * sizeof(double));
  RING_ASSIGN_OR_RETURN(model->rope_frequency_, backend->Allocate(bytes));
  backend->CopyToDevice(model->rope_frequency_->data(), rope.frequency.data(),
                        bytes);
  backend->Synchronize();
  model->rope_gain_ = rope.gain;
  return model;
}

const float* HybridModel::Forward(const StepInputs& inputs,
                                  MoeExchange exchange,
                                  const int32_t* last_tokens) {
  const int half = parts_.config->rotary_dim / 2;
  const StepContext step{*parts_.config,
                         *parts_.mesh,
                         *parts_.backend,
                         *parts_.cache,
                         *workspace_,
                         inputs,
                         limits_.activation_dtype,
                         {workspace_->rope_cos, workspace_->rope_sin, half}};

  stream_->Begin(inputs.rows, exchange == MoeExchange::kAllToAll);
  Embed(step, last_tokens);
  for (int layer = 0; layer < step.config.num_hidden_layers; ++layer) {
    parts_.progress->EnterLayer(layer);
    AttentionHalf(step, layer);
    MlpHalf(step, layer, exchange);
    if (observer_) {
      observer_(layer, stream_->residual(), stream_->own_rows());
    }
  }
  return Head(step);
}

void HybridModel::Embed(const StepContext& step, const int32_t* last_tokens) {
  const StepInputs& inputs = step.inputs;
  step.backend.ScatterInts({inputs.page_index, inputs.page_values,
                            inputs.num_page_entries,
                            const_cast<int32_t*>(inputs.segments.page_table)});

  EmbeddingArgs embed;
  embed.tokens = inputs.tokens;
  embed.token_slots = inputs.token_slots;
  embed.last_tokens = last_tokens;
  embed.rows = inputs.rows;
  embed.table = parts_.weights->word_embeddings;
  embed.vocab_begin = static_cast<int32_t>(parts_.weights->vocab_begin);
  embed.out = workspace_->partial;
  step.backend.Embedding(embed);

  RopeTableArgs rope;
  rope.positions = inputs.positions;
  rope.rows = inputs.rows;
  rope.frequency = static_cast<const double*>(rope_frequency_->data());
  rope.gain = rope_gain_;
  rope.half = step.rope.half;
  rope.cos = workspace_->rope_cos;
  rope.sin = workspace_->rope_sin;
  step.backend.RopeTable(rope);

  stream_->AddPartial(workspace_->partial,
                      parts_.weights->layers[0].input_layernorm.data());
}

void HybridModel::AttentionHalf(const StepContext& step, int layer) {
  const LayerWeights& weights = parts_.weights->layers[layer];
  if (step.inputs.rows == 0) return;
  const void* normed = stream_->GatherNormed();
  GroupScale scale;
  if (step.config.IsSoftmaxLayer(layer)) {
    SoftmaxAttentionForward(step, layer, weights.attention, normed,
                            workspace_->partial);
  } else {
    scale = LinearAttentionForward(step, layer, weights.attention, normed,
                                   workspace_->partial);
  }
  stream_->AddPartial(workspace_->partial,
                      weights.post_attention_layernorm.data(), scale);
}

void HybridModel::MlpHalf(const StepContext& step, int layer,
                          MoeExchange exchange) {
  const LayerWeights& weights = parts_.weights->layers[layer];
  if (!step.config.IsDenseLayer(layer)) {
    moe_->Forward(step, layer, weights.moe, exchange,
                  weights.post_attention_layernorm.data(), NormAfter(layer),
                  stream_.get());
    return;
  }
  if (step.inputs.rows == 0) return;
  DenseFfnArgs mlp;
  mlp.x = stream_->GatherNormed();
  mlp.x_dtype = step.activation_dtype;
  mlp.rows = step.inputs.rows;
  mlp.decode_rows = step.inputs.streamed_rows;
  mlp.weights = weights.dense_mlp;
  mlp.y = workspace_->partial;
  mlp.workspace = workspace_->ffn;
  step.backend.DenseFfn(mlp);
  stream_->AddPartial(workspace_->partial, NormAfter(layer));
}

const float* HybridModel::Head(const StepContext& step) {
  if (step.inputs.rows == 0 || step.inputs.num_samples == 0) {
    return workspace_->logits;
  }
  GatherRowsArgs gather;
  gather.x = stream_->GatherNormed();
  gather.dtype = step.activation_dtype;
  gather.cols = step.config.hidden_size;
  gather.index = step.inputs.sample_rows;
  gather.count = step.inputs.num_samples;
  gather.out = workspace_->sampled_rows;
  step.backend.GatherRows(gather);

  LinearArgs head;
  head.x = workspace_->sampled_rows;
  head.x_dtype = step.activation_dtype;
  head.rows = step.inputs.num_samples;
  head.decode_rows = head.rows;
  head.weight = parts_.weights->lm_head;
  head.y = workspace_->logits;
  step.backend.Linear(head);
  return workspace_->logits;
}

const float* HybridModel::NormAfter(int layer) const {
  const ModelWeights& weights = *parts_.weights;
  const size_t next = static_cast<size_t>(layer) + 1;
  return next < weights.layers.size()
             ? weights.layers[next].input_layernorm.data()
             : weights.norm.data();
}

}  // namespace ring
