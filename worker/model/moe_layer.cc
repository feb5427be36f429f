#include "worker/model/moe_layer.h"

#include <algorithm>

#include "kernels/base/status_macros.h"
#include "kernels/elementwise/embedding.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/moe_routing/moe_routing.h"
#include "kernels/norm/residual_norm.h"
#include "parallel/alltoall_token_exchange.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"

namespace ring {
namespace {

// Decode rows come first among all rows of the group.
int64_t OwnDecodeRows(const StepContext& step, const ResidualStream& stream) {
  return std::clamp<int64_t>(
      step.inputs.streamed_rows - stream.own_rows().begin, 0,
      stream.own_rows().size());
}

// Fills workspace.own_experts and own_weights for the stream's own rows and,
// given the table of this rank's experts, local_experts. The router reads the
// fp32 stream, not the rounded rows.
void Route(const StepContext& step, const MoeWeights& weights,
           const float* norm_weight, const int32_t* to_local,
           ResidualStream* stream) {
  const Workspace& w = step.workspace;
  MoeRoutingArgs route;
  route.x = stream->residual();
  route.rows = stream->own_rows().size();
  route.decode_rows = OwnDecodeRows(step, *stream);
  route.norm_weight = norm_weight;
  route.eps = step.config.rms_norm_eps;
  route.normed = w.router_input;
  route.router = weights.router;
  route.expert_bias = weights.expert_bias.data();
  route.num_experts = step.config.num_experts;
  route.n_group = step.config.n_group;
  route.topk_group = step.config.topk_group;
  route.top_k = step.config.num_experts_per_tok;
  route.norm_topk_prob = step.config.norm_topk_prob;
  route.routed_scaling_factor = step.config.routed_scaling_factor;
  route.logits = w.router_logits;
  route.experts = w.own_experts;
  route.weights = w.own_weights;
  if (to_local != nullptr) {
    route.local = w.local_experts;
    route.to_local = to_local;
    route.row_valid = step.inputs.row_valid;
  }
  step.backend.MoeRouting(route);
}

// The op that leaves in y the weighted results of this rank's experts on
// `rows` rows.
GroupedFfnArgs ExpertsOf(const StepContext& step, const MoeWeights& weights,
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
  return ffn;
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
  if (placement.sliced()) return runner;
  TokenExchange::Options options;
  options.max_rows = (max_rows + mesh.tp() - 1) / mesh.tp();
  options.hidden = config.hidden_size;
  options.top_k = config.num_experts_per_tok;
  options.x_dtype = activation_dtype;
  RING_ASSIGN_OR_RETURN(runner->exchange_,
                        MakeAllToAllTokenExchange(
                            communicators.world, &placement, backend, options));
  return runner;
}

void MoeRunner::Forward(const StepContext& step, int layer,
                        const MoeWeights& weights, MoeExchange exchange,
                        const float* norm_weight, const float* next_norm,
                        ResidualStream* stream) {
  const bool sliced = exchange_ == nullptr;
  if (exchange == MoeExchange::kReplicated || (sliced && !stream->sliced())) {
    Replicated(step, layer, weights, norm_weight, next_norm, stream);
  } else if (sliced) {
    Gathered(step, weights, norm_weight, next_norm, stream);
  } else {
    AllToAll(step, layer, weights, norm_weight, next_norm, stream);
  }
}

void MoeRunner::Replicated(const StepContext& step, int layer,
                           const MoeWeights& weights, const float* norm_weight,
                           const float* next_norm, ResidualStream* stream) {
  const Workspace& w = step.workspace;
  const int64_t hidden = step.config.hidden_size;
  const int64_t group_rows = stream->rows();  // the same in every group
  const int64_t rows = group_rows * mesh_.dp();
  if (rows == 0) return;

  const auto* const to_local =
      static_cast<const int32_t*>(to_local_[layer]->data());
  const bool alone = mesh_.dp() == 1;  // no rows of other groups
  Route(step, weights, norm_weight, alone ? to_local : nullptr, stream);
  const void* const own = stream->GatherNormed();
  DispatchedRows all{rows, own, w.local_experts, w.own_weights};
  if (!alone) {
    const int64_t row_bytes =
        hidden * static_cast<int64_t>(SizeOf(step.activation_dtype));
    const int64_t slot_bytes = group_rows * step.config.num_experts_per_tok *
                               static_cast<int64_t>(sizeof(int32_t));
    communicators_.dp->AllGather(own, w.moe_rows, group_rows * row_bytes);
    communicators_.dp->AllGather(w.own_experts, w.experts, slot_bytes);
    communicators_.dp->AllGather(w.own_weights, w.expert_weights, slot_bytes);
    all.x = w.moe_rows;
    all.weights = w.expert_weights;
    LocalExpertsArgs local;
    local.experts = w.experts;
    local.rows = rows;
    local.top_k = step.config.num_experts_per_tok;
    local.row_valid = step.inputs.row_valid;
    local.to_local = to_local;
    local.local = w.local_experts;
    step.backend.LocalExperts(local);
  }
  // This group's rows also get this rank's slice of the shared expert.
  GroupedFfnArgs ffn = ExpertsOf(step, weights, all, w.partial);
  ffn.shared = &weights.shared_expert_slice;
  ffn.shared_begin = mesh_.dp_rank() * group_rows;
  ffn.shared_rows = group_rows;
  ffn.shared_decode_rows = step.inputs.streamed_rows;
  if (mesh_.world_size() == 1) {  // nothing to add from other ranks
    ResidualNormArgs norm;
    norm.residual = stream->residual();
    norm.norm_weight = next_norm;
    norm.eps = stream->options().norm_eps;
    norm.normed = stream->normed_own();
    norm.normed_dtype = step.activation_dtype;
    ffn.norm = &norm;
    step.backend.GroupedFfn(ffn);
    return;
  }
  step.backend.GroupedFfn(ffn);

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
                         const MoeWeights& weights, const float* norm_weight,
                         const float* next_norm, ResidualStream* stream) {
  const Workspace& w = step.workspace;
  const int64_t rows = stream->own_rows().size();
  const void* x = stream->normed_own();

  Route(step, weights, norm_weight, /*to_local=*/nullptr, stream);
  const DispatchedRows received =
      exchange_->Dispatch(rows, x, w.own_experts, w.own_weights, layer);
  step.backend.GroupedFfn(ExpertsOf(step, weights, received, w.partial));

  DenseFfnArgs shared;
  shared.x = x;
  shared.x_dtype = step.activation_dtype;
  shared.rows = rows;
  shared.decode_rows = OwnDecodeRows(step, *stream);
  shared.weights = weights.shared_expert;
  shared.y = w.own_result;
  shared.workspace = w.ffn;
  step.backend.DenseFfn(shared);

  exchange_->Combine(w.partial, w.own_result);
  stream->AddOwn(w.own_result, next_norm);
}

void MoeRunner::Gathered(const StepContext& step, const MoeWeights& weights,
                         const float* norm_weight, const float* next_norm,
                         ResidualStream* stream) {
  const Workspace& w = step.workspace;
  const int64_t rows = stream->rows();
  if (rows == 0) return;
  Route(step, weights, norm_weight, /*to_local=*/nullptr, stream);
  // As GatherNormed cuts the rows; experts have their global ids on all ranks.
  const int64_t slot_bytes = (rows + mesh_.tp() - 1) / mesh_.tp() *
                             step.config.num_experts_per_tok *
                             static_cast<int64_t>(sizeof(int32_t));
  communicators_.world->AllGather(w.own_experts, w.experts, slot_bytes);
  communicators_.world->AllGather(w.own_weights, w.expert_weights, slot_bytes);
  const DispatchedRows all{rows, stream->GatherNormed(), w.experts,
                           w.expert_weights};
  GroupedFfnArgs ffn = ExpertsOf(step, weights, all, w.partial);
  ffn.shared = &weights.shared_expert_slice;
  ffn.shared_rows = rows;
  ffn.shared_decode_rows = step.inputs.streamed_rows;
  step.backend.GroupedFfn(ffn);
  stream->AddPartial(w.partial, next_norm);
}

}  // namespace ring
