#include "coordinator/generate_call.h"

#include <grpc/grpc.h>

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/prompt.h"
#include "coordinator/request.h"
#include "coordinator/request_limits.h"
#include "coordinator/retry_after.h"
#include "kernels/base/status_macros.h"
#include "proto/status.h"

namespace ring {
namespace {

// What an event takes besides its content: about the size of its objects.
constexpr int64_t kBytesOfAnEvent = 256;

// Appends the news of `from` to `to`, which directly precede it.
void Merge(const v1::TokenDelta& from, v1::TokenDelta* to) {
  to->mutable_token_ids()->MergeFrom(from.token_ids());
  to->mutable_logprobs()->MergeFrom(from.logprobs());
  to->mutable_top_logprobs()->MergeFrom(from.top_logprobs());
  to->mutable_text()->append(from.text());
  to->mutable_reasoning()->append(from.reasoning());
}

// A name for a client that chose none: the number, and random bits that tell
// it from those of an earlier run of the coordinator.
std::string MakeName(uint64_t id) {
  static const uint32_t run = std::random_device()();
  return absl::StrCat("r-", absl::Hex(run, absl::kZeroPad8), "-", id);
}

}  // namespace

std::shared_ptr<GenerateCall> GenerateCall::Create(
    grpc::CallbackServerContext* context, Dispatcher* dispatcher,
    std::chrono::milliseconds read_patience) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(context, dispatcher, read_patience));
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
  RING_RETURN_IF_ERROR(dispatcher_->CheckQueue());
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
  WaitingEvent* const last = waiting_.empty() ? nullptr : &waiting_.back();
  const bool merges =
      event.has_delta() && last != nullptr && last->event.has_delta() &&
      last->event.delta().choice() == event.delta().choice();
  const int64_t bytes = static_cast<int64_t>(event.ByteSizeLong()) +
                        (merges ? 0 : kBytesOfAnEvent);
  // The end of a completion is never refused.
  if (!event.has_finished() && waiting_bytes_ + bytes > kMaxWaitingBytes) {
    overflowed_ = true;
    return false;
  }
  waiting_bytes_ += bytes;
  if (merges) {
    Merge(event.delta(), last->event.mutable_delta());
    last->bytes += bytes;
  } else {
    waiting_.push_back({std::move(event), bytes});
  }
  if (!writing_) Next();
  return true;
}

void GenerateCall::Close(const absl::Status& status) {
  MutexLock lock(&mutex_);
  closed_ = true;
  status_ = status;
  if (overflowed_) CancelStream(status);
  // Not only while something waits here: gRPC has buffers as well.
  WatchReader();
  if (!writing_) Next();
}

void GenerateCall::CancelStream(const absl::Status& why) {
  waiting_.clear();
  // Finish alone would wait behind a write that nobody reads. This is what
  // TryCancel does, but it says why.
  grpc_call_cancel_with_status(context_->c_call(),
                               static_cast<grpc_status_code>(why.code()),
                               std::string(why.message()).c_str(), nullptr);
}

void GenerateCall::WatchReader() {
  patience_.emplace();
  // Weak: the alarm is a part of what it would keep.
  patience_->Set(
      std::chrono::system_clock::now() + read_patience_,
      [weak = std::weak_ptr<GenerateCall>(self_)](bool expired) {
        const std::shared_ptr<GenerateCall> call = weak.lock();
        if (!expired || call == nullptr) return;
        MutexLock lock(&call->mutex_);
        call->CancelStream(absl::ResourceExhaustedError(absl::StrCat(
            "the client does not read its stream: the rest has waited for ",
            call->read_patience_.count(), " ms")));
      });
}

void GenerateCall::Next() {
  if (!waiting_.empty() && !broken_) {
    written_ = std::move(waiting_.front().event);
    waiting_bytes_ -= waiting_.front().bytes;
    waiting_.pop_front();
    writing_ = true;
    StartWrite(&written_);
    return;
  }
  if (!closed_) return;
  if (const auto retry_after = RetryAfter(status_)) {
    context_->AddTrailingMetadata(kRetryAfterMetadata,
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

void GenerateCall::OnDone() {
  {
    MutexLock lock(&mutex_);
    patience_.reset();
  }
  self_.reset();
}

}  // namespace ring
