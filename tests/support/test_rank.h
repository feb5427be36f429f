// Everything of one rank of a test's worker group.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "parallel/block_communicator.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/progress.h"
#include "tests/support/mini_group.h"
#include "worker/engine.h"
#include "worker/model/weight_shard.h"
#include "worker/model_files/model_config.h"

namespace ring {

// In the order that the parts are made.
struct TestRank {
  std::unique_ptr<Backend> backend;
  Progress progress;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<ExpertPlacement> placement;
  std::unique_ptr<WeightShard> weights;
  MeshCommunicators communicators;
  std::unique_ptr<Engine> engine;
};

// Connects a rank to the others.
using ConnectRank = std::function<absl::StatusOr<MeshCommunicators>(
    const Mesh& mesh, const BlockCommunicator::Options& options)>;

// Rank `number` of `options`, with its device and its weights; `config` and
// `rank` stay where they are while the engine lives.
absl::Status BuildTestRank(const MiniGroup::Options& options,
                           const ModelConfig& config, int number,
                           const ConnectRank& connect, TestRank* rank);

// The scheduler of the group's leader.
Scheduler::Options SchedulingOf(const MiniGroup::Options& options);

}  // namespace ring
