#include "worker/model/weight_shard.h"

#include <chrono>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "worker/model/checkpoint_reader.h"
#include "worker/model/device_reader.h"
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

// Turns pointers into one block of memory into pointers into another.
class Relocation {
 public:
  Relocation(const void* from, void* to)
      : from_(static_cast<const char*>(from)), to_(static_cast<char*>(to)) {}

  void Apply(ModelWeights* model) const {
    Apply(&model->word_embeddings);
    for (LayerWeights& layer : model->layers) Apply(&layer);
    Apply(&model->norm);
    Apply(&model->lm_head);
  }

 private:
  template <typename T>
  const T* Moved(const T* pointer) const {
    if (pointer == nullptr) return nullptr;
    const int64_t offset = reinterpret_cast<const char*>(pointer) - from_;
    return reinterpret_cast<const T*>(to_ + offset);
  }
  void Apply(absl::Span<const float>* values) const {
    if (values->empty()) return;
    *values = absl::MakeConstSpan(Moved(values->data()), values->size());
  }
  void Apply(WeightMatrix* w) const {
    w->data = Moved(static_cast<const char*>(w->data));
    w->scales = Moved(w->scales);
    w->row_scale = Moved(w->row_scale);
  }
  void Apply(GatedMlpWeights* mlp) const {
    Apply(&mlp->gate);
    Apply(&mlp->up);
    Apply(&mlp->down);
  }
  void Apply(LayerWeights* layer) const {
    AttentionWeights& attention = layer->attention;
    for (WeightMatrix* w : {&attention.query_key_value, &attention.dense,
                            &attention.g_proj, &layer->moe.router}) {
      Apply(w);
    }
    for (absl::Span<const float>* values :
         {&layer->input_layernorm, &layer->post_attention_layernorm,
          &attention.query_layernorm, &attention.key_layernorm,
          &attention.g_norm, &attention.decay_rates, &layer->moe.expert_bias}) {
      Apply(values);
    }
    Apply(&layer->dense_mlp);
    for (GatedMlpWeights& expert : layer->moe.experts) Apply(&expert);
    Apply(&layer->moe.shared_expert);
    Apply(&layer->moe.shared_expert_slice);
  }

  const char* const from_;
  char* const to_;
};

// Made-up weights have the form that the config promises.
ShardSpec MadeUpSpec(const ModelConfig& config, ShardSpec spec) {
  if (config.quantization == Quantization::kBlockFp8) {
    spec.format = WeightFormat::kBlockFp8;
  }
  return spec;
}

}  // namespace

absl::StatusOr<int64_t> WeightShard::MadeUpBytes(const ModelConfig& config,
                                                 ShardSpec spec) {
  const TensorTable tensors = UnstoredTensors(config);
  RING_ASSIGN_OR_RETURN(
      const LoadPlan plan,
      LoadPlan::Create(config, tensors, MadeUpSpec(config, std::move(spec))));
  return plan.memory_bytes();
}

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
      ReadSlices(plan, checkpoint, {threads, progress}, memory.data()));
  LogLoaded("weights loaded", plan, read_bytes, start);
  return WeightShard(std::move(memory), plan);
}

absl::StatusOr<WeightShard> WeightShard::MakeUp(const ModelConfig& config,
                                                ShardSpec spec, uint64_t seed,
                                                int threads,
                                                Progress* progress) {
  const Clock::time_point start = Clock::now();
  const TensorTable tensors = UnstoredTensors(config);
  RING_ASSIGN_OR_RETURN(
      const LoadPlan plan,
      LoadPlan::Create(config, tensors, MadeUpSpec(config, std::move(spec))));
  RING_ASSIGN_OR_RETURN(WeightMemory memory,
                        WeightMemory::Allocate(plan.memory_bytes()));
  MakeUpSlices(plan, seed, {threads, progress}, memory.data());
  LogLoaded("weights made up", plan, /*read_bytes=*/0, start);
  return WeightShard(std::move(memory), plan);
}

absl::StatusOr<WeightShard> WeightShard::LoadOn(const ModelConfig& config,
                                                const Checkpoint& checkpoint,
                                                const ShardSpec& spec,
                                                int threads, Backend* backend,
                                                Progress* progress) {
  const Clock::time_point start = Clock::now();
  RING_RETURN_IF_ERROR(CheckInventory(config, checkpoint.tensors()).status());
  RING_ASSIGN_OR_RETURN(const LoadPlan plan,
                        LoadPlan::Create(config, checkpoint.tensors(), spec));
  LogInfo("loading weights", "bytes", plan.read_bytes(), "memory_bytes",
          plan.memory_bytes(), "slices", plan.slices().size());
  RING_ASSIGN_OR_RETURN(DeviceParts parts, TablesOn(plan, backend));
  RING_ASSIGN_OR_RETURN(
      const int64_t read_bytes,
      ReadSlicesTo(plan, checkpoint, {threads, progress}, backend,
                   static_cast<std::byte*>(parts.device->data()),
                   parts.shard.memory_->data()));
  parts.shard.MoveInto(std::move(parts.device));
  LogLoaded("weights loaded", plan, read_bytes, start);
  return std::move(parts.shard);
}

absl::StatusOr<WeightShard> WeightShard::MakeUpOn(const ModelConfig& config,
                                                  ShardSpec spec, uint64_t seed,
                                                  Backend* backend,
                                                  Progress* progress) {
  const Clock::time_point start = Clock::now();
  const TensorTable tensors = UnstoredTensors(config);
  RING_ASSIGN_OR_RETURN(
      const LoadPlan plan,
      LoadPlan::Create(config, tensors, MadeUpSpec(config, std::move(spec))));
  RING_ASSIGN_OR_RETURN(DeviceParts parts, TablesOn(plan, backend));
  RING_RETURN_IF_ERROR(
      MakeUpSlicesOn(plan, seed, backend,
                     static_cast<std::byte*>(parts.device->data()), progress));
  parts.shard.MoveInto(std::move(parts.device));
  LogLoaded("weights made up", plan, /*read_bytes=*/0, start);
  return std::move(parts.shard);
}

absl::StatusOr<WeightShard::DeviceParts> WeightShard::TablesOn(
    const LoadPlan& plan, Backend* backend) {
  RING_ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> device,
                        backend->Allocate(plan.memory_bytes()));
  RING_ASSIGN_OR_RETURN(WeightMemory views,
                        WeightMemory::Reserve(plan.memory_bytes()));
  WeightShard shard(std::move(views), plan);
  auto* const memory = static_cast<std::byte*>(device->data());
  for (const SliceRange& table : plan.tables()) {
    backend->CopyToDevice(memory + table.begin,
                          shard.memory_->data() + table.begin, table.size());
  }
  return DeviceParts{std::move(shard), std::move(device)};
}

void WeightShard::MoveInto(std::unique_ptr<DeviceBuffer> device) {
  Relocation(memory_->data(), device->data()).Apply(&weights_);
  device_memory_ = std::move(device);
  memory_.reset();
}

WeightShard::WeightShard(WeightMemory memory, const LoadPlan& plan)
    : bytes_(memory.bytes()),
      memory_(std::move(memory)),
      weights_(plan.Bind(memory_->data())) {}

}  // namespace ring
