// Decides what every step of a worker group runs. Lives on the leader.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/base/mutex.h"
#include "worker/cache/cache_allocator.h"
#include "worker/cache/sequence_state.h"
#include "worker/request_sink.h"

namespace ring {

namespace v1 {
class BatchPlan;
class GroupPlan;
class SampleResult;
class StepResult;
}  // namespace v1

// Continuous batching over one or more data-parallel groups. Each step takes
// one row from every sequence that decodes, and fills the rest of the token
// budget with pieces of prompts, oldest request first. A request is admitted
// to the group with the most free pages once a slot and all pages that it can
// ever need are free, so a running sequence never waits for memory; requests
// are admitted in the order they came.
//
// A request for several completions is admitted to one group with slots and
// pages for all of them at once. Completion 0 computes the prompt. The step
// that ends it draws the first token of each, then copies the state and the
// last, partly filled page to the others; the pages that the prompt fills are
// shared. From there they are sequences like any other.
//
// Rows of a prompt whose log probabilities are asked for are few in a step
// (kMaxScoredRows), since each has its logits.
//
// Two sides. Any thread: the RequestSink methods and WaitForWork's wake-up,
// which only touch the inbox. Engine thread: everything else.
//
//   while (scheduler.WaitForWork()) {
//     if (scheduler.NextPlan(&plan)) { ... run it ...; scheduler.Commit(...); }
//   }
//
// Plans may be sent before the results of earlier ones are in; Commit takes
// the results in the order of the plans. A sequence that ends while a later
// plan holds a row of it keeps its memory until that plan is committed.
class Scheduler final : public RequestSink {
 public:
  // How rows meet their experts.
  enum class ExchangePolicy { kAuto, kReplicated, kAllToAll };

  struct Options {
    int data_parallel = 1;
    int tensor_parallel = 1;
    // Per group.
    CacheAllocator::Capacity cache;
    int64_t max_batch_tokens = 0;  // rows of one step
    // Longest sequence, prompt and completion.
    int64_t max_context = 0;
    // Requests that wait for a slot; beyond it Submit is refused.
    int max_queued = 256;
    ExchangePolicy exchange = ExchangePolicy::kAuto;
    // kAuto: more rows than this over all groups travel to their experts.
    int64_t replicated_rows = 0;
    // Pad decode steps to the sizes of decode_bucket.h.
    bool pad_decode_rows = false;
    // Prompts are cut at absolute multiples of this many tokens, so that where
    // a cut falls does not depend on what else is in the batch. At 1 they are
    // cut wherever the budget of a step ends.
    int64_t prompt_cut = 64;
  };

  explicit Scheduler(const Options& options);
  ~Scheduler() override;

  // --- Any thread. ---

  // INVALID_ARGUMENT if it can never fit, with the numbers;
  // RESOURCE_EXHAUSTED if max_queued requests wait; UNAVAILABLE once draining.
  absl::Status Submit(GenerationRequest request) override;
  void Cancel(uint64_t id) override;
  void CancelCompletion(uint64_t id, int completion) override;
  void CancelAll() override;
  void Drain() override;
  // Ends WaitForWork soon: the process is to stop.
  void Stop();

  // --- Engine thread. ---

  // True as soon as there is a request to look at or a sequence to run; blocks
  // without using CPU. False after Stop, or when a drain is complete.
  bool WaitForWork();

  // Whether there is anything to plan right now; never blocks.
  bool HasWork();

  // Takes in what arrived, then fills `plan` (kind STEP). False if no group has
  // a row to run; `plan` is then unspecified.
  bool NextPlan(v1::BatchPlan* plan);

  // Results of the oldest plan not yet committed, one per group.
  void Commit(absl::Span<const v1::StepResult> results);

  // What happened since the last call: new tokens, ends, errors.
  std::vector<TokenEvent> TakeEvents();

  LoadReport Load() const;
  int plans_in_flight() const { return static_cast<int>(in_flight_.size()); }

 private:
  using Clock = std::chrono::steady_clock;
  using SequencePtr = std::unique_ptr<SequenceState>;

  // A plan's samples, to match results with sequences; and all sequences with
  // rows or samples in it.
  struct SentPlan {
    struct Sample {
      SequenceState* sequence = nullptr;
      bool given = false;  // a token of the prompt
    };
    struct Group {
      std::vector<Sample> samples;  // in plan order
      std::vector<SequenceState*> rows;
    };
    std::vector<Group> groups;
  };

  struct Group {
    explicit Group(const CacheAllocator::Capacity& capacity)
        : cache(capacity) {}
    CacheAllocator cache;
    std::vector<SequenceState*> running;  // in order of admission
  };

  struct CancelOrder {
    uint64_t id = 0;
    std::optional<int> completion;  // none: all
  };
  // Requests and cancels that other threads left.
  struct Inbox {
    std::vector<SequencePtr> requests;
    std::vector<CancelOrder> cancels;
    bool cancel_all = false;
  };

  static int64_t PagesFor(int64_t tokens);
  absl::Status FitLimits(SequenceState* sequence) const;

  void TakeArrivals();
  void DropExpired();
  void PlanDecodes(Group* group, v1::GroupPlan* plan, SentPlan::Group* sent,
                   int64_t* budget);
  void PlanPrompts(Group* group, v1::GroupPlan* plan, SentPlan::Group* sent,
                   int64_t* budget);
  void Admit(absl::Span<const int64_t> budgets);
  int PickGroup(int sequences, int64_t pages,
                absl::Span<const int64_t> budgets) const;
  void Place(SequenceState* sequence, int group, int64_t pages);
  void AddSegment(Group* group, SequenceState* sequence, int64_t rows,
                  v1::GroupPlan* plan, SentPlan::Group* sent);
  void AddSample(SequenceState* sequence, int64_t row, v1::GroupPlan* plan,
                 SentPlan::Group* sent);
  void AddScores(SequenceState* sequence, int64_t begin, int64_t row,
                 v1::GroupPlan* plan, SentPlan::Group* sent);
  void StartFollowers(Group* group, SequenceState* first, int64_t row,
                      v1::GroupPlan* plan, SentPlan::Group* sent);
  void FillExchange(v1::BatchPlan* plan) const;
  static int32_t NumTokenIds(const SentPlan& plan);

  void CommitScore(SequenceState* sequence, const v1::SampleResult& sample);
  void CommitToken(SequenceState* sequence, const v1::SampleResult& sample);
  void FailNotNumbers(SequenceState* sequence, int64_t position);
  void Finish(SequenceState* sequence, FinishReason reason);
  void Fail(SequenceState* sequence, absl::Status error);
  void ReleaseIfDone(SequenceState* sequence);
  TokenEvent& EventFor(SequenceState* sequence);
  std::vector<SequenceState*> CompletionsOf(uint64_t id) const;

  const Options options_;
  std::vector<Group> groups_;
  std::deque<SequenceState*> waiting_;
  // By request and completion.
  std::map<std::pair<uint64_t, int>, SequencePtr> sequences_;
  std::deque<SentPlan> in_flight_;
  std::vector<TokenEvent> events_;
  int64_t next_step_ = 0;

  mutable Mutex mutex_;
  CondVar arrived_;
  Inbox inbox_ GUARDED_BY(mutex_);
  int num_queued_ GUARDED_BY(mutex_) = 0;  // not admitted yet
  bool draining_ GUARDED_BY(mutex_) = false;
  bool stopped_ GUARDED_BY(mutex_) = false;
};

}  // namespace ring
