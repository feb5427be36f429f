#include "worker/model/workspace.h"

#include <algorithm>

#include "kernels/base/status_macros.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "parallel/mesh.h"

namespace ring {
namespace {

int64_t MaxLocalQkv(const ModelConfig& config, const Mesh& mesh) {
  const int64_t linear = 3 * mesh.heads().size() * config.head_dim;
  const int64_t softmax =
      (mesh.heads().size() + 2 * mesh.kv_heads().size()) * config.head_dim;
  return std::max(linear, softmax);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Workspace>> Workspace::Create(
    const ModelConfig& config, const Mesh& mesh, const Limits& limits,
    Backend* backend) {
  std::unique_ptr<Workspace> w(new Workspace);
  const DType act_dtype = limits.activation_dtype;
  const int64_t act = static_cast<int64_t>(SizeOf(act_dtype));
  constexpr int64_t kFloat = sizeof(float);
  const int64_t rows = limits.max_rows;
  const int64_t hidden = config.hidden_size;
  const int64_t heads_width = mesh.heads().size() * config.head_dim;
  const int64_t slice = (rows + mesh.tp() - 1) / mesh.tp();
  w->max_moe_rows = std::max(rows * mesh.dp(), slice * mesh.world_size());
  const int64_t moe_rows = w->max_moe_rows;

  const auto allocate = [&](auto** pointer, int64_t bytes) -> absl::Status {
    RING_ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> buffer,
                          backend->Allocate(bytes));
    *pointer = static_cast<std::remove_reference_t<decltype(*pointer)>>(
        buffer->data());
    w->buffers_.push_back(std::move(buffer));
    return absl::OkStatus();
  };

  const int64_t half = config.rotary_dim / 2;
  RING_RETURN_IF_ERROR(allocate(&w->rope_cos, rows * half * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->rope_sin, rows * half * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->partial, moe_rows * hidden * kFloat));
  RING_RETURN_IF_ERROR(
      allocate(&w->qkv, rows * MaxLocalQkv(config, mesh) * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->gate, rows * heads_width * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->attention, rows * heads_width * act));
  RING_RETURN_IF_ERROR(allocate(&w->sum_of_squares, rows * kFloat));
  RING_RETURN_IF_ERROR(allocate(
      &w->lightning, kFloat * LightningWorkspaceFloats(
                                  rows, static_cast<int>(mesh.heads().size()),
                                  config.head_dim)));
  RING_RETURN_IF_ERROR(allocate(&w->moe_rows, moe_rows * hidden * act));
  RING_RETURN_IF_ERROR(
      allocate(&w->router_logits, rows * config.num_experts * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->router_input, rows * hidden * kFloat));
  const int64_t own_slots = rows * config.num_experts_per_tok;
  RING_RETURN_IF_ERROR(allocate(&w->own_experts, own_slots * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->own_weights, own_slots * kFloat));
  const int64_t slots = moe_rows * config.num_experts_per_tok;
  RING_RETURN_IF_ERROR(allocate(&w->experts, slots * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->local_experts, slots * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->expert_weights, slots * kFloat));
  RING_RETURN_IF_ERROR(allocate(&w->own_result, rows * hidden * kFloat));
  const int64_t dense_inner =
      std::max(config.intermediate_size / mesh.tp() + 1,
               config.moe_intermediate_size * config.num_shared_experts);
  RING_RETURN_IF_ERROR(allocate(
      &w->ffn,
      std::max(GroupedFfnWorkspaceBytes(moe_rows, config.num_experts_per_tok,
                                        hidden, limits.expert_inner, act_dtype,
                                        config.num_experts),
               DenseFfnWorkspaceBytes(moe_rows, dense_inner, act_dtype))));
  RING_RETURN_IF_ERROR(
      allocate(&w->sampled_rows, limits.max_samples * hidden * act));
  RING_RETURN_IF_ERROR(
      allocate(&w->logits, limits.max_samples * mesh.vocab().size() * kFloat));
  return w;
}

}  // namespace ring
