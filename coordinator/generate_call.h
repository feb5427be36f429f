// The server side of one Generate stream.
#pragma once

#include <grpcpp/alarm.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

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
  // `read_patience`: how long a stream that has ended waits for its reader.
  static std::shared_ptr<GenerateCall> Create(
      grpc::CallbackServerContext* context, Dispatcher* dispatcher,
      std::chrono::milliseconds read_patience);

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
  struct WaitingEvent {
    v1::GenerateEvent event;
    int64_t bytes = 0;  // what it counts for in waiting_bytes_
  };

  GenerateCall(grpc::CallbackServerContext* context, Dispatcher* dispatcher,
               std::chrono::milliseconds read_patience)
      : context_(context),
        dispatcher_(dispatcher),
        read_patience_(read_patience) {}

  absl::Status Submit(const v1::GenerateRequest& message,
                      const ServedModel& model);
  // Starts the next write, or finishes the call when it is closed and nothing
  // waits. REQUIRES: no write is under way.
  void Next() REQUIRES(mutex_);
  // Drops what waits and ends the stream with `why`, whether the client reads
  // it or not.
  void CancelStream(const absl::Status& why) REQUIRES(mutex_);
  // Cancels a closed stream that is not read for read_patience_.
  void WatchReader() REQUIRES(mutex_);

  grpc::CallbackServerContext* const context_;
  Dispatcher* const dispatcher_;
  const std::chrono::milliseconds read_patience_;
  std::shared_ptr<GenerateCall> self_;   // until OnDone
  std::atomic<uint64_t> request_id_{0};  // 0: nothing was submitted

  Mutex mutex_;
  std::deque<WaitingEvent> waiting_ GUARDED_BY(mutex_);
  int64_t waiting_bytes_ GUARDED_BY(mutex_) = 0;
  bool overflowed_ GUARDED_BY(mutex_) = false;    // it was full
  v1::GenerateEvent written_ GUARDED_BY(mutex_);  // gRPC reads it
  bool writing_ GUARDED_BY(mutex_) = false;
  bool broken_ GUARDED_BY(mutex_) = false;  // the client is gone
  bool closed_ GUARDED_BY(mutex_) = false;
  std::optional<grpc::Alarm> patience_ GUARDED_BY(mutex_);  // until OnDone
  absl::Status status_ GUARDED_BY(mutex_);
};

}  // namespace ring
