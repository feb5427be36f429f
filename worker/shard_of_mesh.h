// From a model's config to what one rank of a mesh holds.
#pragma once

#include "absl/status/statusor.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"
#include "worker/model/load_plan.h"
#include "worker/model_files/model_config.h"

namespace ring {

// The mesh of `world_size` ranks around a model's sizes. dp 0 means as many
// groups as tp leaves. INVALID_ARGUMENT as Mesh::Create.
absl::StatusOr<Mesh> MakeMesh(const ModelConfig& config, int world_size,
                              int rank, int tp, int dp);

// Where the routed experts live. Owned: whole, contiguous over the world.
// Sliced: every rank holds 1 / tp of the inner columns of each;
// INVALID_ARGUMENT where that takes more than one data-parallel group or leaves
// a rank nothing.
absl::StatusOr<ExpertPlacement> PlaceExperts(const ModelConfig& config,
                                             const Mesh& mesh, bool sliced);

// What the mesh's rank loads: its slices, and the experts that `placement`
// gives it, whole or sliced. Decay mode and weight format are left at their
// defaults.
ShardSpec MakeShardSpec(const ModelConfig& config, const Mesh& mesh,
                        const ExpertPlacement& placement);

}  // namespace ring
