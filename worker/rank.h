// Everything that one rank of a worker group is made of.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/mesh.h"
#include "parallel/mpi_runtime.h"
#include "worker/engine.h"
#include "worker/flags.h"
#include "worker/model/weight_shard.h"
#include "worker/model_files/checkpoint.h"
#include "worker/model_files/model_config.h"
#include "worker/rank_plan.h"

namespace ring {

// Made and used by the engine thread.
class Rank {
 public:
  // What a rank is made of, found and checked: the files' headers are read and
  // the device is there, but no weight is read and no memory taken.
  struct Parts {
    ModelConfig config;
    RankPlan plan;
    std::optional<Checkpoint> checkpoint = {};  // none: weights are made up
    int64_t weight_bytes = 0;                   // that the weights will take
    int threads = 1;
    bool on_gpu = false;
    std::unique_ptr<Backend> backend = nullptr;
  };
  // Errors are what whoever started the group has to mend: a folder that is not
  // there or no model, flags that do not fit it or the number of ranks, a
  // device that is missing.
  static absl::StatusOr<Parts> Prepare(const WorkerFlags& flags,
                                       const MpiRuntime& mpi,
                                       Progress* progress);

  // Loads the weights and takes all memory. Collective: every rank of the world
  // calls it with parts of the same flags. `mpi` and `progress` outlive the
  // rank. `on_failure` is told of an error within a collective and ends the
  // process.
  using FailureHandler = std::function<void(const std::string& what)>;
  static absl::StatusOr<std::unique_ptr<Rank>> Create(
      const WorkerFlags& flags, Parts parts, MpiRuntime* mpi,
      Progress* progress, FailureHandler on_failure);

  // Collective, at the end of a run without failure.
  absl::Status Close() { return communicators_.Close(); }

  const ModelConfig& config() const { return parts_.config; }
  const Mesh& mesh() const { return parts_.plan.mesh; }
  Engine& engine() { return *engine_; }
  const WeightShard& weights() const { return *weights_; }
  // Tokens of one sequence.
  int64_t max_context() const { return parts_.plan.engine.max_context; }
  // Of this rank's group.
  int num_pages() const { return parts_.plan.engine.num_pages; }
  bool on_gpu() const { return parts_.on_gpu; }

 private:
  explicit Rank(Parts parts) : parts_(std::move(parts)) {}

  // In the order in which they need each other.
  Parts parts_;
  std::optional<WeightShard> weights_;
  MeshCommunicators communicators_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace ring
