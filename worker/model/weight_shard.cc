#include "worker/model/weight_shard.h"

#include <chrono>
#include <utility>

#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "worker/model/checkpoint_reader.h"
#include "worker/model/dummy_weights.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

void LogLoaded(absl::string_view event, const LoadPlan& plan,
               int64_t read_bytes, Clock::time_point start) {
  const double seconds =
      std::chrono::duration<double>(Clock::now() - start).count();
  LogInfo(event, "planned_bytes", plan.read_bytes(), "read_bytes", read_bytes,
          "memory_bytes", plan.memory_bytes(), "seconds", seconds, "gb_per_s",
          static_cast<double>(read_bytes) / seconds * 1e-9);
}

}  // namespace

absl::StatusOr<WeightShard> WeightShard::Load(const ModelConfig& config,
                                              const Checkpoint& checkpoint,
                                              const ShardSpec& spec,
                                              int threads, Progress* progress) {
  const Clock::time_point start = Clock::now();
  RING_RETURN_IF_ERROR(CheckInventory(config, checkpoint.tensors()).status());
  RING_ASSIGN_OR_RETURN(const LoadPlan plan,
                        LoadPlan::Create(config, checkpoint.tensors(), spec));
  LogInfo("loading weights", "bytes", plan.read_bytes(), "memory_bytes",
          plan.memory_bytes(), "slices", plan.slices().size());
  RING_ASSIGN_OR_RETURN(WeightMemory memory,
                        WeightMemory::Allocate(plan.memory_bytes()));
  RING_ASSIGN_OR_RETURN(
      const int64_t read_bytes,
      ReadSlices(plan, checkpoint, threads, memory.data(), progress));
  LogLoaded("weights loaded", plan, read_bytes, start);
  return WeightShard(std::move(memory), plan);
}

absl::StatusOr<WeightShard> WeightShard::MakeUp(const ModelConfig& config,
                                                ShardSpec spec, uint64_t seed,
                                                int threads,
                                                Progress* progress) {
  const Clock::time_point start = Clock::now();
  if (config.quantization == Quantization::kBlockFp8) {
    spec.format = WeightFormat::kBlockFp8;
  }
  const TensorTable tensors = UnstoredTensors(config);
  RING_ASSIGN_OR_RETURN(const LoadPlan plan,
                        LoadPlan::Create(config, tensors, std::move(spec)));
  RING_ASSIGN_OR_RETURN(WeightMemory memory,
                        WeightMemory::Allocate(plan.memory_bytes()));
  MakeUpSlices(plan, seed, threads, memory.data(), progress);
  LogLoaded("weights made up", plan, /*read_bytes=*/0, start);
  return WeightShard(std::move(memory), plan);
}

WeightShard::WeightShard(WeightMemory memory, const LoadPlan& plan)
    : memory_(std::move(memory)), weights_(plan.Bind(memory_.data())) {}

}  // namespace ring
