// Where the events of one request go.
#pragma once

#include <chrono>
#include <optional>

#include "absl/status/status.h"
#include "ring/v1/inference.pb.h"

namespace ring {

// The way back to one client. Thread-safe; no call blocks. Calls of one
// request come one after the other; Close is the last.
class EventStream {
 public:
  virtual ~EventStream() = default;

  // Queues an event; deltas that were not sent yet are merged. False: the
  // client has not read for so long that the queue is full; the event is
  // dropped and the request has to end.
  virtual bool Send(v1::GenerateEvent event) = 0;

  // Ends the stream with `status`, after all queued events.
  virtual void Close(const absl::Status& status) = 0;
};

// A status with this payload tells the client when to try again.
absl::Status WithRetryAfter(absl::Status status,
                            std::chrono::milliseconds retry_after);
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

}  // namespace ring
