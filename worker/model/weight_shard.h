// A rank's weights in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/progress.h"
#include "worker/model/load_plan.h"
#include "worker/model/model_weights.h"
#include "worker/model/weight_memory.h"
#include "worker/model_files/checkpoint.h"
#include "worker/model_files/model_config.h"

namespace ring {

// Owns the memory that its ModelWeights point into: the host's, or a device's.
// Immutable.
// Loading takes minutes for a large model: `progress`, if not null, ticks after
// every few megabytes, so that a watchdog can tell slow from stuck.
class WeightShard {
 public:
  // Checks the inventory, then reads this rank's slices with `threads` reads
  // in flight. Logs the bytes planned and read, the seconds and the rate.
  // INVALID_ARGUMENT as CheckInventory and CheckTensorParallel,
  // RESOURCE_EXHAUSTED as WeightMemory, DATA_LOSS when a file cannot be read.
  static absl::StatusOr<WeightShard> Load(const ModelConfig& config,
                                          const Checkpoint& checkpoint,
                                          const ShardSpec& spec, int threads,
                                          Progress* progress = nullptr);

  // Random weights instead: every mesh gets slices of the same model. With a
  // config that says block FP8, or spec.format, the big matrices are
  // quantised.
  static absl::StatusOr<WeightShard> MakeUp(const ModelConfig& config,
                                            ShardSpec spec, uint64_t seed,
                                            int threads,
                                            Progress* progress = nullptr);

  // Memory that made-up weights take.
  static absl::StatusOr<int64_t> MadeUpBytes(const ModelConfig& config,
                                             ShardSpec spec);

  // The same weights in memory of `backend`, which outlives the shard: read
  // through pinned buffers and quantised there, or made there. Nothing is read
  // if they do not fit: RESOURCE_EXHAUSTED.
  static absl::StatusOr<WeightShard> LoadOn(const ModelConfig& config,
                                            const Checkpoint& checkpoint,
                                            const ShardSpec& spec, int threads,
                                            Backend* backend,
                                            Progress* progress = nullptr);
  static absl::StatusOr<WeightShard> MakeUpOn(const ModelConfig& config,
                                              ShardSpec spec, uint64_t seed,
                                              Backend* backend,
                                              Progress* progress = nullptr);

  const ModelWeights& weights() const { return weights_; }
  int64_t bytes() const { return bytes_; }

 private:
  // A shard in the making: its views name addresses of the host until the
  // device's memory takes their place.
  struct DeviceParts;

  WeightShard(WeightMemory memory, const LoadPlan& plan);
  // Takes the device's memory and fills in what is computed here.
  static absl::StatusOr<DeviceParts> TablesOn(const LoadPlan& plan,
                                              Backend* backend);
  // `device` holds what memory_ names; memory_ is given up.
  void MoveInto(std::unique_ptr<DeviceBuffer> device);

  int64_t bytes_ = 0;
  std::optional<WeightMemory> memory_;  // one of the two
  std::unique_ptr<DeviceBuffer> device_memory_;
  ModelWeights weights_;
};

struct WeightShard::DeviceParts {
  WeightShard shard;
  std::unique_ptr<DeviceBuffer> device;
};

}  // namespace ring
