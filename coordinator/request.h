// One Generate call, from acceptance to its end.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/completion_text.h"
#include "coordinator/event_stream.h"
#include "coordinator/prompt.h"
#include "coordinator/request_limits.h"
#include "coordinator/served_model.h"
#include "kernels/base/mutex.h"
#include "ring/v1/cluster.pb.h"

namespace ring {

// Turns the token ids of a group into the client's events and keeps prompt and
// tokens, from which another group could continue. Thread-safe; calls back
// into its EventStream only, while holding its lock.
class Request {
 public:
  using SteadyTime = std::chrono::steady_clock::time_point;
  using SystemTime = std::chrono::system_clock::time_point;

  // What happened to the request in OnTokens.
  enum class Outcome {
    kLive,
    kFinished,  // the group ended it
    // A choice is complete here (stop string): the group must cancel it, the
    // request goes on.
    kChoiceStopped,
    kStopped,  // the last one, complete here: the group must cancel the request
    kFailed,   // ended here with an error: the group must cancel it
  };

  struct Args {
    uint64_t id = 0;   // unique in the life of the coordinator
    std::string name;  // request_id of the client
    Prompt prompt;
    RequestOptions options;
    const ServedModel* model = nullptr;   // outlives the request
    std::shared_ptr<EventStream> stream;  // kept alive by gRPC as well
    SteadyTime arrived_at;
    SystemTime deadline = SystemTime::max();  // max: none
  };

  explicit Request(Args args);

  uint64_t id() const { return args_.id; }
  const std::string& name() const { return args_.name; }
  int64_t prompt_tokens() const {
    return static_cast<int64_t>(args_.prompt.ids.size());
  }
  // The client's max_tokens; 0: what fits.
  int64_t asked_tokens() const { return args_.options.max_tokens; }
  int choices() const { return args_.options.choices; }
  // Prompt and the longest completions.
  int64_t most_tokens() const {
    return prompt_tokens() + choices() * max_tokens_;
  }
  // What a group must be able to hold: the prompt and the completion that the
  // client asks for, or else one token.
  int64_t least_tokens() const {
    return prompt_tokens() + std::max<int64_t>(asked_tokens(), 1);
  }

  // Sends Accepted. Once, first.
  void Accept(int64_t queue_position);

  // What a group needs to run it, tokens generated so far included.
  v1::Submit MakeSubmit(int64_t epoch);

  // Takes the next tokens of the group. Tokens that no completion can have (a
  // gap, an unknown id, more than asked for) end the request with INTERNAL.
  // Without effect once it has ended. After kFinished, kStopped and kFailed,
  // call Conclude.
  Outcome OnTokens(const v1::RequestTokens& tokens);

  // Tells the client how the request ended. Two steps, so that it is out of
  // the books before the client can act on its end (use its name again).
  void Conclude();

  // Ends the stream with an error. Without effect once it has ended.
  void Fail(const absl::Status& status);

 private:
  // One completion.
  struct Choice {
    Choice(int index, const Args& args)
        : index(index),
          text(args.model, args.options, args.prompt.starts_in_thinking) {}

    const int index;
    bool ended = false;  // takes no more tokens
    std::vector<int32_t> generated;
    CompletionText text;
    int64_t reasoning_tokens = 0;
    SteadyTime first_token_at;
    SteadyTime last_token_at;
    int64_t group_queue_us = 0;
    int64_t prefill_us = 0;
  };

  absl::Status Check(const v1::RequestTokens& tokens) const REQUIRES(mutex_);
  absl::Status CheckPrompt(const v1::RequestTokens& tokens) const
      REQUIRES(mutex_);
  // False: the client does not read.
  bool SendPrompt(const v1::PromptLogprobs& prompt) REQUIRES(mutex_);
  Outcome FailSlowClient() REQUIRES(mutex_);
  // Adds tokens up to the end or a stop string to the completion and *delta.
  void AppendTokens(const v1::RequestTokens& tokens, Choice* choice,
                    v1::TokenDelta* delta) REQUIRES(mutex_);
  v1::FinishReason Reason(const Choice& choice, v1::GroupFinish finish) const;
  // The last event of a completion.
  v1::GenerateEvent MakeFinished(const Choice& choice,
                                 v1::FinishReason reason) const
      REQUIRES(mutex_);

  const Args args_;
  const int64_t max_tokens_;  // the client's, or what fits the context

  Mutex mutex_;
  bool ended_ GUARDED_BY(mutex_) = false;   // takes no more tokens
  bool closed_ GUARDED_BY(mutex_) = false;  // the client knows it
  // How it ended: an error, or the last event of the last choice.
  absl::Status error_ GUARDED_BY(mutex_);
  v1::GenerateEvent finished_ GUARDED_BY(mutex_);
  int64_t scored_ GUARDED_BY(mutex_) = 0;  // prompt_logprobs sent
  std::deque<Choice> choices_ GUARDED_BY(mutex_);
  int live_choices_ GUARDED_BY(mutex_);
  SteadyTime submitted_at_ GUARDED_BY(mutex_);
};

}  // namespace ring
