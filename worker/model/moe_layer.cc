#include "worker/model/moe_layer.h"

#include <algorithm>

#include "kernels/base/status_macros.h"
#include "kernels/elementwise/embedding.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/moe_routing/moe_routing.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"

namespace ring {
namespace {

// Fills workspace.experts and workspace.expert_weights for `rows` rows of x.
void Route(const StepContext& step, const MoeWeights& weights, const void* x,
           int64_t rows) {
  const Workspace& w = step.workspace;
  MoeRoutingArgs route;
  route.x = x;
  route.x_dtype = step.activation_dtype;
  route.rows = rows;
  route.router = weights.router;
  route.expert_bias = weights.expert_bias.data();
  route.num_experts = step.config.num_experts;
  route.n_group = step.config.n_group;
  route.topk_group = step.config.topk_group;
  route.top_k = step.config.num_experts_per_tok;
  route.norm_topk_prob = step.config.norm_topk_prob;
  route.routed_scaling_factor = step.config.routed_scaling_factor;
  route.logits = w.router_logits;
  route.experts = w.experts;
  route.weights = w.expert_weights;
  step.backend.MoeRouting(route);
}

// y = the weighted results of this rank's experts on `rows` rows.
void RunExperts(const StepContext& step, const MoeWeights& weights,
                const DispatchedRows& rows, float* y) {
  GroupedFfnArgs ffn;
  ffn.x = rows.x;
  ffn.x_dtype = step.activation_dtype;
  ffn.rows = rows.rows;
  ffn.top_k = step.config.num_experts_per_tok;
  ffn.local_experts = rows.local_experts;
  ffn.weights = rows.weights;
  ffn.experts = weights.experts;
  ffn.hidden = step.config.hidden_size;
  ffn.y = y;
  ffn.workspace = step.workspace.ffn;
  step.backend.GroupedFfn(ffn);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MoeRunner>> MoeRunner::Create(
    const ModelConfig& config, const Mesh& mesh,
    const ExpertPlacement& placement, const Communicators& communicators,
    int64_t max_rows, DType activation_dtype, Backend* backend) {
  std::unique_ptr<MoeRunner> runner(new MoeRunner(mesh, communicators));
  runner->keep_.resize(mesh.world_size());
  runner->to_local_.resize(config.num_hidden_layers);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsDenseLayer(layer)) continue;
    const std::vector<int32_t> table = placement.ToLocal(layer, mesh.rank());
    const int64_t bytes = static_cast<int64_t>(table.size() * sizeof(int32_t));
    RING_ASSIGN_OR_RETURN(runner->to_local_[layer], backend->Allocate(bytes));
    backend->CopyToDevice(runner->to_local_[layer]->data(), table.data(),
                          bytes);
    backend->Synchronize();
  }
  TokenExchange::Options options;
  options.max_rows = (max_rows + mesh.tp() - 1) / mesh.tp();
  options.hidden = config.hidden_size;
  options.top_k = config.num_experts_per_tok;
  options.x_dtype = activation_dtype;
  RING_ASSIGN_OR_RETURN(
      runner->exchange_,
      MakeTokenExchange(options, placement, communicators.world, backend));
  return runner;
}

void MoeRunner::Forward(const StepContext& step, int layer,
                        const MoeWeights& weights, MoeExchange exchange,
                        const float* next_norm, ResidualStream* stream) {
  if (exchange == MoeExchange::kReplicated) {
    Replicated(step, layer, weights, next_norm, stream);
  } else {
    AllToAll(step, layer, weights, next_norm, stream);
  }
}

void MoeRunner::Replicated(const StepContext& step, int layer,
                           const MoeWeights& weights, const float* next_norm,
                           ResidualStream* stream) {
  const Workspace& w = step.workspace;
  const int64_t hidden = step.config.hidden_size;
  const int64_t group_rows = stream->rows();  // the same in every group
  const int64_t rows = group_rows * mesh_.dp();
  if (rows == 0) return;

  const void* own = stream->GatherNormed();
  const void* x = own;
  if (mesh_.dp() > 1) {
    communicators_.dp->AllGather(
        own, w.moe_rows,
        group_rows * hidden *
            static_cast<int64_t>(SizeOf(step.activation_dtype)));
    x = w.moe_rows;
  }
  Route(step, weights, x, rows);

  LocalExpertsArgs local;
  local.experts = w.experts;
  local.rows = rows;
  local.top_k = step.config.num_experts_per_tok;
  local.row_valid = step.inputs.row_valid;
  local.to_local = static_cast<const int32_t*>(to_local_[layer]->data());
  local.local = w.local_experts;
  step.backend.LocalExperts(local);
  RunExperts(step, weights, {rows, x, w.local_experts, w.expert_weights},
             w.partial);

  // This group's rows also get this rank's slice of the shared expert.
  const int64_t first = mesh_.dp_rank() * group_rows;
  DenseFfnArgs shared;
  shared.x = own;
  shared.x_dtype = step.activation_dtype;
  shared.rows = group_rows;
  shared.decode_rows = step.inputs.decode_rows;
  shared.weights = weights.shared_expert_slice;
  shared.y = w.partial + first * hidden;
  shared.accumulate = true;
  shared.workspace = w.ffn;
  step.backend.DenseFfn(shared);

  for (int rank = 0; rank < mesh_.world_size(); ++rank) {
    const int64_t begin = rank / mesh_.tp() * group_rows;
    keep_[rank] = {begin, begin + group_rows};
  }
  ReduceRowsArgs reduce;
  reduce.partial = w.partial;
  reduce.rows = rows;
  reduce.cols = hidden;
  reduce.keep = keep_;
  reduce.residual = stream->residual();
  reduce.norm_weight = next_norm;
  reduce.norm_eps = stream->options().norm_eps;
  reduce.normed = stream->normed_own();
  reduce.normed_dtype = step.activation_dtype;
  communicators_.world->ReduceRows(reduce);
}

void MoeRunner::AllToAll(const StepContext& step, int layer,
                         const MoeWeights& weights, const float* next_norm,
                         ResidualStream* stream) {
  const Workspace& w = step.workspace;
  const int64_t rows = stream->own_rows().size();
  const void* x = stream->normed_own();

  Route(step, weights, x, rows);
  const DispatchedRows received =
      exchange_->Dispatch(rows, x, w.experts, w.expert_weights, layer);
  RunExperts(step, weights, received, w.partial);

  DenseFfnArgs shared;
  shared.x = x;
  shared.x_dtype = step.activation_dtype;
  shared.rows = rows;
  shared.decode_rows = std::clamp<int64_t>(
      step.inputs.decode_rows - stream->own_rows().begin, 0, rows);
  shared.weights = weights.shared_expert;
  shared.y = w.own_result;
  shared.workspace = w.ffn;
  step.backend.DenseFfn(shared);

  exchange_->Combine(w.partial, w.own_result);
  stream->AddOwn(w.own_result, next_norm);
}

}  // namespace ring
