#include "worker/rank_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "worker/shard_of_mesh.h"

namespace ring {
namespace {

ShardSpec ShardOf(const WorkerFlags& flags, const ModelConfig& config,
                  const Mesh& mesh, const ExpertPlacement& placement) {
  ShardSpec spec = MakeShardSpec(config, mesh, placement);
  spec.decay_mode =
      flags.decay == "index_m1" ? DecayMode::kIndexM1 : DecayMode::kIndex;
  spec.format = flags.weights == "fp8" ? WeightFormat::kBlockFp8
                                       : WeightFormat::kAsStored;
  return spec;
}

absl::StatusOr<Engine::Options> EngineOf(const WorkerFlags& flags,
                                         const ModelConfig& config) {
  const int64_t longest = config.ContextLength();
  if (flags.max_context > longest) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-context = ", flags.max_context, " is above the ",
                     longest, " tokens that the model was made for"));
  }
  const DType activations =
      flags.activations == "fp32" ? DType::kFloat32 : DType::kBFloat16;
  Engine::Options engine;
  engine.max_sequences = flags.max_sequences;
  engine.num_pages = static_cast<int>(flags.kv_tokens / kPageTokens);
  engine.max_batch_tokens = flags.max_batch_tokens;
  engine.max_context = flags.max_context > 0 ? flags.max_context : longest;
  engine.activation_dtype = activations;
  engine.kv_dtype = activations;
  engine.deterministic = flags.deterministic;
  return engine;
}

}  // namespace

absl::StatusOr<RankPlan> PlanRank(const WorkerFlags& flags,
                                  const ModelConfig& config, int world_size,
                                  int rank) {
  RING_ASSIGN_OR_RETURN(Mesh mesh,
                        MakeMesh(config, world_size, rank, flags.tp, flags.dp));
  RING_ASSIGN_OR_RETURN(
      ExpertPlacement placement,
      PlaceExperts(config, mesh, /*sliced=*/flags.experts == "sliced"));
  ShardSpec shard = ShardOf(flags, config, mesh, placement);
  RING_ASSIGN_OR_RETURN(const Engine::Options engine, EngineOf(flags, config));
  const EngineBytes bytes = MeasureEngine(config, mesh, placement, engine);
  return RankPlan{std::move(mesh), std::move(placement), std::move(shard),
                  engine, bytes};
}

}  // namespace ring
