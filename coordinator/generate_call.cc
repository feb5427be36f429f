#include "coordinator/generate_call.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/prompt.h"
#include "coordinator/request.h"
#include "coordinator/request_limits.h"
#include "kernels/base/status_macros.h"
#include "proto/status.h"

namespace ring {
namespace {

// Appends the news of `from` to `to`, which directly precede it.
void Merge(const v1::TokenDelta& from, v1::TokenDelta* to) {
  to->mutable_token_ids()->MergeFrom(from.token_ids());
  to->mutable_logprobs()->MergeFrom(from.logprobs());
  to->mutable_top_logprobs()->MergeFrom(from.top_logprobs());
  to->mutable_text()->append(from.text());
  to->mutable_reasoning()->append(from.reasoning());
}

// That count against what may wait for the client.
int64_t TokensOf(const v1::GenerateEvent& event) {
  return event.delta().token_ids_size() +
         event.prompt_logprobs().logprobs_size();
}

// A name for a client that chose none: the number, and random bits that tell
// it from those of an earlier run of the coordinator.
std::string MakeName(uint64_t id) {
  static const uint32_t run = std::random_device()();
  return absl::StrCat("r-", absl::Hex(run, absl::kZeroPad8), "-", id);
}

}  // namespace

std::shared_ptr<GenerateCall> GenerateCall::Create(
    grpc::CallbackServerContext* context, Dispatcher* dispatcher) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(context, dispatcher));
  call->self_ = call;
  return call;
}

void GenerateCall::Start(const v1::GenerateRequest& message,
                         const ServedModel& model) {
  const absl::Status status = Submit(message, model);
  if (!status.ok()) Close(status);
}

absl::Status GenerateCall::Submit(const v1::GenerateRequest& message,
                                  const ServedModel& model) {
  Request::Args args;
  args.arrived_at = std::chrono::steady_clock::now();
  args.deadline = context_->deadline();
  RING_ASSIGN_OR_RETURN(args.options, ReadOptions(message, model));
  RING_ASSIGN_OR_RETURN(args.prompt, ReadPrompt(message, model));
  args.id = dispatcher_->NextRequestId();
  args.name =
      message.request_id().empty() ? MakeName(args.id) : message.request_id();
  args.model = &model;
  args.stream = self_;
  request_id_ = args.id;
  return dispatcher_->Submit(std::make_shared<Request>(std::move(args)));
}

bool GenerateCall::Send(v1::GenerateEvent event) {
  MutexLock lock(&mutex_);
  if (broken_) return true;  // OnCancel ends the request
  const int64_t tokens = TokensOf(event);
  if (tokens > 0 && waiting_tokens_ + tokens > kMaxWaitingTokens) return false;
  waiting_tokens_ += tokens;
  if (event.has_delta() && !waiting_.empty() && waiting_.back().has_delta() &&
      waiting_.back().delta().choice() == event.delta().choice()) {
    Merge(event.delta(), waiting_.back().mutable_delta());
  } else {
    waiting_.push_back(std::move(event));
  }
  if (!writing_) Next();
  return true;
}

void GenerateCall::Close(const absl::Status& status) {
  MutexLock lock(&mutex_);
  closed_ = true;
  status_ = status;
  if (!writing_) Next();
}

void GenerateCall::Next() {
  if (!waiting_.empty() && !broken_) {
    written_ = std::move(waiting_.front());
    waiting_.pop_front();
    waiting_tokens_ -= TokensOf(written_);
    writing_ = true;
    StartWrite(&written_);
    return;
  }
  if (!closed_) return;
  if (const auto retry_after = RetryAfter(status_)) {
    context_->AddTrailingMetadata("retry-after-ms",
                                  absl::StrCat(retry_after->count()));
  }
  Finish(ToGrpcStatus(status_));
}

void GenerateCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) broken_ = true;
  Next();
}

void GenerateCall::OnCancel() {
  const bool expired = std::chrono::system_clock::now() >= context_->deadline();
  dispatcher_->Cancel(
      request_id_,
      expired ? absl::DeadlineExceededError("the client's deadline has passed")
              : absl::CancelledError("the client is gone"));
}

void GenerateCall::OnDone() { self_.reset(); }

}  // namespace ring
