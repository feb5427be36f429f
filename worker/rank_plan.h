// What a rank of a world is to hold and to do.
#pragma once

#include "absl/status/statusor.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"
#include "worker/engine.h"
#include "worker/engine_bytes.h"
#include "worker/flags.h"
#include "worker/model/load_plan.h"
#include "worker/model_files/model_config.h"

namespace ring {

struct RankPlan {
  Mesh mesh;
  ExpertPlacement placement;
  ShardSpec shard;
  Engine::Options engine;
  EngineBytes bytes;  // of that engine
};

// A function of the flags and the model alone: any process can make the plan of
// any rank. INVALID_ARGUMENT as MakeMesh and PlaceExperts, or for a
// --max-context beyond the model.
absl::StatusOr<RankPlan> PlanRank(const WorkerFlags& flags,
                                  const ModelConfig& config, int world_size,
                                  int rank);

}  // namespace ring
