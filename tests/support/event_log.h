// What a scheduler says about its requests.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/check.h"
#include "kernels/base/mutex.h"
#include "worker/request_sink.h"
#include "worker/scheduler.h"

namespace ring {

// What became of one completion of a request.
struct Completion {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<IdLogprob>> top_logprobs;
  std::vector<PromptLogprob> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  absl::Status error;
  int64_t next_index = -1;  // of the next event; -1: none has come
  bool done() const { return finish != FinishReason::kNone; }
};

// Collects events by request and completion. Thread-safe.
class EventLog final : public EventSink {
 public:
  void Publish(std::vector<TokenEvent> events) override {
    MutexLock lock(&mutex_);
    for (TokenEvent& event : events) {
      Completion& completion = completions_[{event.id, event.completion}];
      RING_CHECK(!completion.done() && !errors_.contains(event.id))
          << "an event after the last";
      // A continuation starts after the tokens that came with it.
      if (completion.next_index < 0) completion.next_index = event.start_index;
      RING_CHECK_EQ(event.start_index, completion.next_index);
      completion.next_index += static_cast<int64_t>(event.tokens.size());
      completion.tokens.insert(completion.tokens.end(), event.tokens.begin(),
                               event.tokens.end());
      completion.logprobs.insert(completion.logprobs.end(),
                                 event.logprobs.begin(), event.logprobs.end());
      completion.top_logprobs.insert(completion.top_logprobs.end(),
                                     event.top_logprobs.begin(),
                                     event.top_logprobs.end());
      RING_CHECK(event.prompt_logprobs.empty() || completion.tokens.empty());
      completion.prompt_logprobs.insert(completion.prompt_logprobs.end(),
                                        event.prompt_logprobs.begin(),
                                        event.prompt_logprobs.end());
      completion.finish = event.finish;
      if (!event.error.ok()) errors_[event.id] = event.error;
    }
    changed_.NotifyAll();
  }
  void PublishLoad(const LoadReport& load) override {
    MutexLock lock(&mutex_);
    load_ = load;
  }
  LoadReport load() {
    MutexLock lock(&mutex_);
    return load_;
  }

  void Fail(uint64_t id, absl::Status error) {
    MutexLock lock(&mutex_);
    errors_[id] = std::move(error);
  }

  // Waits for the end of a completion, at most two minutes.
  Completion Wait(uint64_t id, int index = 0) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::minutes(2);
    MutexLock lock(&mutex_);
    Completion& completion = completions_[{id, index}];
    absl::Status late;
    while (late.ok() && !completion.done() && !errors_.contains(id)) {
      if (!changed_.WaitUntil(&mutex_, deadline)) {
        late = absl::DeadlineExceededError("no end within two minutes");
      }
    }
    Completion copy = completion;
    copy.error = late;
    if (errors_.contains(id)) copy.error = errors_[id];
    return copy;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<std::pair<uint64_t, int>, Completion> completions_
      GUARDED_BY(mutex_);
  std::map<uint64_t, absl::Status> errors_ GUARDED_BY(mutex_);  // by request
  LoadReport load_ GUARDED_BY(mutex_);
};

}  // namespace ring
