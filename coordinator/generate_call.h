// The server side of one Generate stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>

#include "coordinator/dispatcher.h"
#include "coordinator/event_stream.h"
#include "kernels/base/mutex.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {

// Writes the events of one request. It lives until gRPC has reported the call
// done and the request has let go of it; hence the shared ownership.
// Thread-safe: events come from threads that read from groups, callbacks from
// gRPC's.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateEvent>,
                           public EventStream {
 public:
  // Tokens, and those of the prompt whose log probabilities are told, that may
  // wait for a client that reads too slowly.
  static constexpr int64_t kMaxWaitingTokens = 16384;

  static std::shared_ptr<GenerateCall> Create(
      grpc::CallbackServerContext* context, Dispatcher* dispatcher);

  // Checks the request and submits it, or closes the stream with the reason.
  void Start(const v1::GenerateRequest& message, const ServedModel& model);

  // EventStream.
  bool Send(v1::GenerateEvent event) override;
  void Close(const absl::Status& status) override;

  // gRPC's callbacks.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateCall(grpc::CallbackServerContext* context, Dispatcher* dispatcher)
      : context_(context), dispatcher_(dispatcher) {}

  absl::Status Submit(const v1::GenerateRequest& message,
                      const ServedModel& model);
  // Starts the next write, or finishes the call when it is closed and nothing
  // waits. REQUIRES: no write is under way.
  void Next() REQUIRES(mutex_);

  grpc::CallbackServerContext* const context_;
  Dispatcher* const dispatcher_;
  std::shared_ptr<GenerateCall> self_;   // until OnDone
  std::atomic<uint64_t> request_id_{0};  // 0: nothing was submitted

  Mutex mutex_;
  std::deque<v1::GenerateEvent> waiting_ GUARDED_BY(mutex_);
  int64_t waiting_tokens_ GUARDED_BY(mutex_) = 0;
  v1::GenerateEvent written_ GUARDED_BY(mutex_);  // gRPC reads it
  bool writing_ GUARDED_BY(mutex_) = false;
  bool broken_ GUARDED_BY(mutex_) = false;  // the client is gone
  bool closed_ GUARDED_BY(mutex_) = false;
  absl::Status status_ GUARDED_BY(mutex_);
};

}  // namespace ring
