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

// Owns the memory that its ModelWeights point into: the host's, until the shard
// is moved to a device. Immutable from then on.
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

  // The same weights, made on the device of `backend`, which outlives the
  // shard. RESOURCE_EXHAUSTED if they do not fit there.
  static absl::StatusOr<WeightShard> MakeUpOn(const ModelConfig& config,
                                              ShardSpec spec, uint64_t seed,
                                              Backend* backend,
                                              Progress* progress = nullptr);

  // Copies everything to `backend`, which outlives the shard, and frees the
  // host's memory. RESOURCE_EXHAUSTED if it does not fit; nothing has changed
  // then.
  absl::Status MoveTo(Backend* backend);

  const ModelWeights& weights() const { return weights_; }
  int64_t bytes() const { return bytes_; }

 private:
  WeightShard(WeightMemory memory, const LoadPlan& plan);
  // `device` holds a copy of memory_, which is freed.
  void MoveInto(std::unique_ptr<DeviceBuffer> device);

  int64_t bytes_ = 0;
  std::optional<WeightMemory> memory_;           // unless moved
  std::unique_ptr<DeviceBuffer> device_memory_;  // if moved
  ModelWeights weights_;
};

}  // namespace ring
