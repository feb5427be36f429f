#include "coordinator/cluster_service.h"

#include <atomic>
#include <deque>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/group_link.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "proto/protocol.h"
#include "proto/status.h"

namespace ring {
namespace {

// Bounds that keep the sums of a group in range whatever it claims.
constexpr int64_t kMaxCapacity = int64_t{1} << 40;
constexpr int kMaxRanks = 1 << 16;

absl::Status CheckCapacity(absl::string_view name, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Hello.", name, " = ", value, " is not in [1, ", max, "]"));
}

absl::StatusOr<GroupInfo> ReadHello(const v1::Hello& hello,
                                    const std::string& model_digest) {
  if (hello.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the worker speaks protocol version ", hello.protocol_version(),
        ", the coordinator ", kProtocolVersion, ": install the same release"));
  }
  if (hello.model_digest() != model_digest) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the worker has another model: its digest is ", hello.model_digest(),
        ", the coordinator's ", model_digest, ": give both the same --model"));
  }
  RING_RETURN_IF_ERROR(CheckCapacity("dp", hello.dp(), kMaxRanks));
  RING_RETURN_IF_ERROR(CheckCapacity("tp", hello.tp(), kMaxRanks));
  RING_RETURN_IF_ERROR(
      CheckCapacity("max_sequences", hello.max_sequences(), kMaxCapacity));
  RING_RETURN_IF_ERROR(
      CheckCapacity("kv_tokens", hello.kv_tokens(), kMaxCapacity));
  RING_RETURN_IF_ERROR(CheckCapacity("max_batch_tokens",
                                     hello.max_batch_tokens(), kMaxCapacity));
  RING_RETURN_IF_ERROR(
      CheckCapacity("context_length", hello.context_length(), kMaxCapacity));
  GroupInfo info;
  info.key = hello.group_key();
  info.epoch = hello.epoch();
  info.host = hello.host();
  info.pid = hello.pid();
  info.device = hello.device();
  info.dp = hello.dp();
  info.tp = hello.tp();
  info.max_sequences = hello.max_sequences();
  info.kv_tokens = hello.kv_tokens();
  info.max_batch_tokens = hello.max_batch_tokens();
  info.context_length = hello.context_length();
  return info;
}

// One Join call. It lives until gRPC has reported the call done and the
// dispatcher has let go of it. Reads come one at a time; Send and Close from
// any thread.
class JoinCall final
    : public grpc::ServerBidiReactor<v1::FromWorker, v1::ToWorker>,
      public GroupLink {
 public:
  static JoinCall* Start(const std::string* model_digest,
                         Dispatcher* dispatcher) {
    std::shared_ptr<JoinCall> call(new JoinCall(model_digest, dispatcher));
    call->self_ = call;
    call->StartRead(&call->read_);
    return call.get();
  }

  // GroupLink.
  void Send(v1::ToWorker message) override {
    MutexLock lock(&mutex_);
    if (closed_) return;
    waiting_.push_back(std::move(message));
    if (!writing_) Next();
  }

  void Close(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    if (closed_) return;
    closed_ = true;
    Finish(ToGrpcStatus(status));
  }

  // gRPC's callbacks.
  void OnReadDone(bool ok) override {
    if (!ok) {
      Leave(absl::CancelledError("its stream ended"));
      return;
    }
    const absl::Status status = Receive(read_);
    if (!status.ok()) {
      LogWarning("group refused", "why", status.message());
      Leave(status);
      return;
    }
    StartRead(&read_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    writing_ = false;
    if (ok && !closed_) Next();
  }

  void OnCancel() override {
    Leave(absl::CancelledError("its connection broke"));
  }

  void OnDone() override { self_.reset(); }

 private:
  JoinCall(const std::string* model_digest, Dispatcher* dispatcher)
      : model_digest_(*model_digest), dispatcher_(dispatcher) {}

  absl::Status Receive(const v1::FromWorker& message) {
    if (group_ == 0) return Join(message);
    switch (message.message_case()) {
      case v1::FromWorker::kLoad:
        dispatcher_->OnLoad(group_, message.load());
        return absl::OkStatus();
      case v1::FromWorker::kTokens:
        dispatcher_->OnTokens(group_, message.tokens());
        return absl::OkStatus();
      case v1::FromWorker::kFailed:
        dispatcher_->OnFailed(
            group_, message.failed().id(),
            ErrorFromWire(message.failed().code(), message.failed().message()));
        return absl::OkStatus();
      case v1::FromWorker::kHello:
        return absl::InvalidArgumentError("a second Hello on one stream");
      case v1::FromWorker::MESSAGE_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError("a message of an unknown kind");
  }

  absl::Status Join(const v1::FromWorker& message) {
    if (!message.has_hello()) {
      return absl::InvalidArgumentError(
          "the first message on a Join stream has to be Hello");
    }
    RING_ASSIGN_OR_RETURN(GroupInfo info,
                          ReadHello(message.hello(), model_digest_));
    RING_ASSIGN_OR_RETURN(group_,
                          dispatcher_->AddGroup(std::move(info), self_));
    return absl::OkStatus();
  }

  // The group is gone. Runs once for each way to notice it; only the first
  // has an effect. A failed read is always one of them, and it comes after
  // Join, so no group stays behind.
  void Leave(const absl::Status& why) {
    if (group_ != 0) {
      dispatcher_->RemoveGroup(group_, std::string(why.message()));
    }
    Close(why);
  }

  void Next() REQUIRES(mutex_) {
    if (waiting_.empty()) return;
    written_ = std::move(waiting_.front());
    waiting_.pop_front();
    writing_ = true;
    StartWrite(&written_);
  }

  const std::string& model_digest_;
  Dispatcher* const dispatcher_;
  std::shared_ptr<JoinCall> self_;  // until OnDone
  v1::FromWorker read_;             // of the read under way
  std::atomic<int64_t> group_{0};   // 0: no Hello yet

  Mutex mutex_;
  std::deque<v1::ToWorker> waiting_ GUARDED_BY(mutex_);
  v1::ToWorker written_ GUARDED_BY(mutex_);  // gRPC reads it
  bool writing_ GUARDED_BY(mutex_) = false;
  bool closed_ GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerBidiReactor<v1::FromWorker, v1::ToWorker>* ClusterService::Join(
    grpc::CallbackServerContext*) {
  return JoinCall::Start(&model_digest_, dispatcher_);
}

grpc::ServerUnaryReactor* ClusterService::CheckGroup(
    grpc::CallbackServerContext* context, const v1::Hello* hello,
    v1::CheckGroupResponse*) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(ReadHello(*hello, model_digest_).status()));
  return reactor;
}

}  // namespace ring
