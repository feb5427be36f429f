// Everything that one rank of a worker group is made of.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"
#include "parallel/mpi_runtime.h"
#include "worker/engine.h"
#include "worker/flags.h"
#include "worker/model/weight_shard.h"
#include "worker/model_files/model_config.h"

namespace ring {

// Made and used by the engine thread. `mpi` and `progress` outlive it.
class Rank {
 public:
  // Reads the config, takes the device, loads the weights, takes all memory.
  // Collective: every rank of the world calls it with the same flags. Errors
  // say what does not fit, or which file or device is missing. `on_failure` is
  // told of an error within a collective and ends the process.
  using FailureHandler = std::function<void(const std::string& what)>;
  static absl::StatusOr<std::unique_ptr<Rank>> Create(
      const WorkerFlags& flags, MpiRuntime* mpi, Progress* progress,
      FailureHandler on_failure);

  // Collective, at the end of a run without failure.
  absl::Status Close() { return communicators_.Close(); }

  const ModelConfig& config() const { return config_; }
  const Mesh& mesh() const { return *mesh_; }
  Engine& engine() { return *engine_; }
  const WeightShard& weights() const { return *weights_; }
  int64_t max_context() const { return max_context_; }  // tokens
  int num_pages() const { return num_pages_; }          // of this group
  bool on_gpu() const { return on_gpu_; }

 private:
  Rank() = default;

  // In the order in which they need each other.
  ModelConfig config_;
  std::optional<Mesh> mesh_;
  std::optional<ExpertPlacement> placement_;
  std::unique_ptr<Backend> backend_;
  std::optional<WeightShard> weights_;
  MeshCommunicators communicators_;
  std::unique_ptr<Engine> engine_;
  int64_t max_context_ = 0;
  int num_pages_ = 0;
  bool on_gpu_ = false;
};

// How the flags name weights and decay to the loader; also for --check.
WeightFormat WeightFormatOf(const WorkerFlags& flags);
DecayMode DecayModeOf(const WorkerFlags& flags);

}  // namespace ring
