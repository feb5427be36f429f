// A whole worker group in one process: a thread per rank, real model code.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "parallel/mesh.h"
#include "tests/support/event_log.h"
#include "worker/engine.h"
#include "worker/model/load_plan.h"
#include "worker/scheduler.h"

namespace ring {

// Ranks talk through ThreadWorld; the scheduler, step loop, engine and model
// are those of ring-worker. Thread-safe.
class MiniGroup {
 public:
  struct Options {
    std::string model_dir;
    int tp = 1;
    int dp = 1;
    DType activation_dtype = DType::kFloat32;
    Scheduler::ExchangePolicy exchange = Scheduler::ExchangePolicy::kAuto;
    bool sliced_experts = false;
    WeightFormat format = WeightFormat::kAsStored;
    bool dummy_weights = false;  // model_dir then needs no more than a config
    DecayMode decay_mode = DecayMode::kIndex;
    int max_sequences = 8;
    int64_t kv_tokens = 16384;
    int64_t max_batch_tokens = 512;
    int64_t prompt_cut = 64;  // as Scheduler's
    int64_t max_context = 4096;
    int max_queued = 1024;
    int64_t replicated_rows = 4;
    bool deterministic = false;  // replicated_rows is 0 then
    bool pad_decode_rows = false;
    bool overlap = false;  // as StepLoop's
    // Weights go through the backend's memory on the CPU too.
    bool load_on_backend = false;
    int num_token_ids = 1 << 30;
    int threads = 1;
    // As MakeBackend takes it. Threads with a GPU each cannot talk: one rank.
    std::string device = "cpu";
    // Puts a backend in front of each rank's.
    std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)>
        wrap_backend;
    // Called on each rank's thread before its first step.
    std::function<void(int rank, const Mesh& mesh, Engine* engine)> on_ready;
  };

  // Loads the model and starts all ranks.
  static absl::StatusOr<std::unique_ptr<MiniGroup>> Start(
      const Options& options);
  // Cancels what runs and ends the ranks.
  ~MiniGroup();

  // The id is given out here; num_token_ids is filled in if it is 0.
  uint64_t Submit(GenerationRequest request);
  void Cancel(uint64_t id) { scheduler_->Cancel(id); }
  void CancelCompletion(uint64_t id, int index) {
    scheduler_->CancelCompletion(id, index);
  }
  // Waits for the end of one completion, at most two minutes.
  Completion Wait(uint64_t id, int index = 0);
  Completion Run(GenerationRequest request) {
    return Wait(Submit(std::move(request)));
  }

  // As published after the last step.
  LoadReport load() const;

 private:
  struct Ranks;
  MiniGroup();

  Options options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<EventLog> events_;
  std::unique_ptr<Ranks> ranks_;
  uint64_t next_id_ = 1;
};

// tests/data/ring-tiny.
std::string RingTinyDir();

}  // namespace ring
