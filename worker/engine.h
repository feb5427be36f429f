// One rank's model, memory and sampler: executes plans.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/progress.h"
#include "worker/cache/cache_pool.h"
#include "worker/model/hybrid_model.h"
#include "worker/plan_buffer.h"
#include "worker/sampler.h"

namespace ring {

namespace v1 {
class BatchPlan;
class GroupPlan;
class StepResult;
}  // namespace v1

// Everything that a step touches is allocated in Create. Confined to the
// engine thread.
class Engine {
 public:
  // Borrowed; outlives the engine.
  struct Parts {
    const ModelConfig* config = nullptr;
    const ModelWeights* weights = nullptr;
    const Mesh* mesh = nullptr;
    const ExpertPlacement* placement = nullptr;
    Communicator* tp = nullptr;
    Communicator* dp = nullptr;
    Communicator* world = nullptr;
    Backend* backend = nullptr;
    Progress* progress = nullptr;
  };
  struct Options {
    int max_sequences = 0;         // slots of this group
    int num_pages = 0;             // KV pages of this group
    int64_t max_batch_tokens = 0;  // rows of a step
    int64_t max_context = 0;       // tokens of one sequence
    DType activation_dtype = DType::kBFloat16;
    DType kv_dtype = DType::kBFloat16;
    // The bits of a row do not depend on what else is in its step, given one
    // exchange for all steps and prompts that are cut at multiples of 64.
    bool deterministic = false;
  };

  // RESOURCE_EXHAUSTED if caches and activations do not fit the device.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Parts& parts,
                                                        const Options& options);

  // Queues one STEP plan. Every rank of the world calls it with the same plan.
  // A step may be queued before the results of earlier ones were collected:
  // what it takes from them lies on the device. INTERNAL if the plan breaks a
  // limit of this engine: the rank must end then.
  absl::Status Enqueue(const v1::BatchPlan& plan);
  // Waits for the oldest step that was queued and not collected, and returns
  // the result of this rank's group. REQUIRES: steps_in_flight() > 0.
  v1::StepResult Collect();
  int steps_in_flight() const { return static_cast<int>(in_flight_.size()); }
  // Both, for one step alone.
  absl::StatusOr<v1::StepResult> Step(const v1::BatchPlan& plan);

  // Called after every step, for tests that compare logits: [samples of this
  // group, local vocabulary], device.
  using StepObserver =
      std::function<void(const v1::BatchPlan& plan, const float* logits)>;
  void set_step_observer(StepObserver observer) {
    observer_ = std::move(observer);
  }

  HybridModel& model() { return *model_; }
  CachePool& cache() { return *cache_; }
  Backend& backend() { return *parts_.backend; }

 private:
  // A queued step: where its tokens arrive, and when.
  struct SentStep {
    std::vector<SampledToken> tokens;
    // [samples, kMaxTopLogits] or empty.
    std::vector<TopLogit> top;
    int64_t done = 0;  // mark of the backend
  };

  // What the plan says of sequences whose logits are adjusted.
  void StartAdjustments(const v1::GroupPlan& group);
  void CountKnownTokens(const v1::GroupPlan& group, const StepInputs& inputs);

  Engine(const Parts& parts, const Options& options)
      : parts_(parts), options_(options) {}

  const Parts parts_;
  const Options options_;
  std::unique_ptr<CachePool> cache_;
  std::unique_ptr<DeviceBuffer>
      page_table_;  // [max_sequences, max pages] int32
  // Decode-only steps are small and take the one, all others the other: little
  // is copied for them, and their addresses hold in a recording.
  std::unique_ptr<PlanBuffer> decode_plan_;
  std::unique_ptr<PlanBuffer> plan_;
  std::unique_ptr<HybridModel> model_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<DeviceBuffer> last_tokens_;  // [max_sequences] int32
  std::unique_ptr<DeviceBuffer> sampled_;      // [max samples] int32
  std::deque<SentStep> in_flight_;
  StepObserver observer_;
};

}  // namespace ring
