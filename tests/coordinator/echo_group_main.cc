// A worker group without a model, as a program: it answers a prompt with the
// prompt's own tokens and an end-of-sequence token. A prompt that starts with
// token 0 is never answered, until it is cancelled.
//   echo_group HOST:PORT MODEL_DIR
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "kernels/base/signal_watcher.h"
#include "worker/coordinator_link.h"
#include "worker/model_files/digest.h"

namespace ring {
namespace {

class EchoSink : public RequestSink {
 public:
  absl::Status Submit(GenerationRequest request) override {
    MutexLock lock(&mutex_);
    requests_.push_back(std::move(request));
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  void Cancel(uint64_t) override {}  // held requests are held anyway
  void CancelCompletion(uint64_t, int) override {}
  void CancelAll() override {
    MutexLock lock(&mutex_);
    requests_.clear();
  }
  void Drain() override { Stop(); }

  void Stop() {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }

  // Answers requests until Stop.
  void Run(EventSink* events) {
    while (true) {
      std::vector<GenerationRequest> requests;
      {
        MutexLock lock(&mutex_);
        while (!stopped_ && requests_.empty()) changed_.Wait(&mutex_);
        if (stopped_) return;
        requests.swap(requests_);
      }
      for (const GenerationRequest& request : requests) {
        for (int i = 0; i < request.num_completions; ++i) {
          Answer(request, i, events);
        }
      }
    }
  }

 private:
  static void Answer(const GenerationRequest& request, int completion,
                     EventSink* events) {
    if (request.prompt[0] == 0) return;
    std::vector<int32_t> tokens = request.prompt;
    // Unless ends of sequence are ignored.
    if (!request.eos_token_ids.empty()) {
      tokens.push_back(request.eos_token_ids[0]);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
      TokenEvent event;
      event.id = request.id;
      event.completion = completion;
      event.start_index = static_cast<int64_t>(i);
      event.tokens = {tokens[i]};
      if (request.logprobs) event.logprobs = {-0.25f};
      if (request.top_logprobs > 0) {
        event.top_logprobs = {std::vector<IdLogprob>(
            request.top_logprobs, IdLogprob{tokens[i], -0.25f})};
      }
      event.finish = Finish(request, tokens[i], i + 1);
      const bool ends = event.finish != FinishReason::kNone;
      events->Publish({std::move(event)});
      if (ends) return;
    }
  }

  static FinishReason Finish(const GenerationRequest& request, int32_t token,
                             size_t tokens) {
    const auto contains = [token](const std::vector<int32_t>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    if (contains(request.eos_token_ids)) return FinishReason::kEos;
    if (contains(request.stop_token_ids)) return FinishReason::kStopToken;
    return tokens >= static_cast<size_t>(request.max_new_tokens)
               ? FinishReason::kLength
               : FinishReason::kNone;
  }

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::vector<GenerationRequest> requests_ GUARDED_BY(mutex_);
};

int Run(const std::string& coordinator, const std::string& model_dir) {
  EchoSink sink;
  const SignalWatcher signals([&sink](int, int) { sink.Stop(); });
  const absl::StatusOr<std::string> digest = ModelDigest(model_dir);
  if (!digest.ok()) {
    LogError("cannot join", "error", digest.status().ToString());
    return 1;
  }
  CoordinatorLink::Options options;
  options.coordinator = coordinator;
  options.group = {.model_digest = *digest,
                   .device = "cpu",
                   .dp = 1,
                   .tp = 1,
                   .max_sequences = 16,
                   .kv_tokens = 65536,
                   .max_batch_tokens = 256,
                   .context_length = 16384};
  options.on_refused = [](const absl::Status&) { std::exit(1); };
  const auto link = CoordinatorLink::Start(std::move(options), &sink);
  if (!link.ok()) return 1;
  sink.Run(link->get());
  return 0;
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: echo_group HOST:PORT MODEL_DIR\n");
    return 2;
  }
  ring::SetLogIdentity("echo group");
  return ring::Run(argv[1], argv[2]);
}
