// Where a rank's engine thread is, published for the watchdogs.
#pragma once

#include <atomic>
#include <cstdint>

namespace ring {

// Written by the engine thread with plain stores, read by the watchdog thread
// at any time; Tick also by the threads that load weights. The fields are
// independent: a reader may see a new layer with an old collective, which is
// good enough to tell where a rank stands.
struct Progress {
  enum class Phase : int32_t {
    kStarting,
    kLoading,
    kIdle,
    kComputing,
    kWaiting
  };

  // kIdle makes no progress and need not; the other phases must tick.
  std::atomic<Phase> phase{Phase::kStarting};
  std::atomic<int64_t> step{-1};
  // Rows of the step, with padding: names the recording that a GPU replays.
  std::atomic<int32_t> rows{0};
  std::atomic<int32_t> layer{-1};
  // The op that runs, while a backend waits after each
  // (kernels/debug_backend.h), else null.
  std::atomic<const char*> op{nullptr};
  // Collectives begun so far. Ranks in lock step have equal counts; the rank
  // that others wait for has begun fewer, or is not waiting.
  std::atomic<int64_t> collective{0};
  // Moves with everything that counts as progress: layers, collectives, reads.
  std::atomic<int64_t> ticks{0};

  void Tick() { ticks.fetch_add(1, std::memory_order_relaxed); }
  void EnterStep(int64_t number, int64_t num_rows) {
    step.store(number, std::memory_order_relaxed);
    rows.store(static_cast<int32_t>(num_rows), std::memory_order_relaxed);
    phase.store(Phase::kComputing, std::memory_order_relaxed);
    Tick();
  }
  void EnterLayer(int32_t index) {
    layer.store(index, std::memory_order_relaxed);
    Tick();
  }
  void BeginCollective() {
    collective.fetch_add(1, std::memory_order_relaxed);
    phase.store(Phase::kWaiting, std::memory_order_relaxed);
    Tick();
  }
  void EndCollective() {
    phase.store(Phase::kComputing, std::memory_order_relaxed);
    Tick();
  }
  void EnterIdle() { phase.store(Phase::kIdle, std::memory_order_relaxed); }
};

// Publishes one collective for the length of a scope. `progress` may be null.
class CollectiveScope {
 public:
  explicit CollectiveScope(Progress* progress) : progress_(progress) {
    if (progress_ != nullptr) progress_->BeginCollective();
  }
  ~CollectiveScope() {
    if (progress_ != nullptr) progress_->EndCollective();
  }
  CollectiveScope(const CollectiveScope&) = delete;
  CollectiveScope& operator=(const CollectiveScope&) = delete;

 private:
  Progress* const progress_;
};

}  // namespace ring
