#include "coordinator/cluster_service.h"

#include <deque>
#include <memory>
#include <utility>

#include "coordinator/group_link.h"
#include "coordinator/group_session.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "proto/status.h"

namespace ring {
namespace {

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
    const absl::Status status = session_.Receive(read_, self_);
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
      : session_(model_digest, dispatcher) {}

  // The group is gone. Runs once for each way to notice it; only the first
  // has an effect. A failed read is always one of them, and it comes after
  // Join, so no group stays behind.
  void Leave(const absl::Status& why) {
    session_.Leave(why);
    Close(why);
  }

  void Next() REQUIRES(mutex_) {
    if (waiting_.empty()) return;
    written_ = std::move(waiting_.front());
    waiting_.pop_front();
    writing_ = true;
    StartWrite(&written_);
  }

  GroupSession session_;
  std::shared_ptr<JoinCall> self_;  // until OnDone
  v1::FromWorker read_;             // of the read under way

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
