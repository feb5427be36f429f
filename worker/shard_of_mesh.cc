#include "worker/shard_of_mesh.h"

#include "absl/strings/str_cat.h"

namespace ring {

absl::StatusOr<Mesh> MakeMesh(const ModelConfig& config, int world_size,
                              int rank, int tp, int dp) {
  if (dp == 0) {
    if (world_size % tp != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tp ", tp, " does not divide the ", world_size,
                       " ranks that were started: start a multiple of ", tp));
    }
    dp = world_size / tp;
  }
  MeshConfig mesh;
  mesh.world_size = world_size;
  mesh.rank = rank;
  mesh.tp = tp;
  mesh.dp = dp;
  mesh.num_attention_heads = config.num_attention_heads;
  mesh.num_key_value_heads = config.num_key_value_heads;
  mesh.group_norm_size = config.group_norm_size;
  mesh.vocab_size = config.vocab_size;
  mesh.intermediate_size =
      config.first_k_dense_replace > 0 ? config.intermediate_size : 0;
  mesh.shared_expert_size = config.shared_expert_size();
  return Mesh::Create(mesh);
}

absl::StatusOr<ExpertPlacement> PlaceExperts(const ModelConfig& config,
                                             const Mesh& mesh, bool sliced) {
  if (!sliced) {
    return ExpertPlacement::Contiguous(config.num_hidden_layers,
                                       config.num_experts, mesh.world_size());
  }
  if (mesh.dp() > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--experts sliced needs one data-parallel group: ", mesh.world_size(),
        " ranks at tp=", mesh.tp(), " make ", mesh.dp()));
  }
  if (config.moe_intermediate_size < mesh.tp()) {
    return absl::InvalidArgumentError(
        absl::StrCat("moe_intermediate_size=", config.moe_intermediate_size,
                     " cannot be sliced over tp=", mesh.tp(), " ranks"));
  }
  return ExpertPlacement::Sliced(config.num_hidden_layers, config.num_experts,
                                 mesh.world_size());
}

ShardSpec MakeShardSpec(const ModelConfig& config, const Mesh& mesh,
                        const ExpertPlacement& placement) {
  ShardSpec spec;
  spec.tp = mesh.tp();
  spec.tp_rank = mesh.tp_rank();
  spec.slice_experts = placement.sliced();
  spec.experts.resize(config.num_hidden_layers);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsDenseLayer(layer)) continue;
    const absl::Span<const int> owned = placement.Owned(layer, mesh.rank());
    spec.experts[layer].assign(owned.begin(), owned.end());
  }
  return spec;
}

}  // namespace ring
