// Where the events of one request go.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "ring/v1/inference.pb.h"

namespace ring {

// The way back to one client. Thread-safe; no call blocks. Calls of one
// request come one after the other; Close is the last.
class EventStream {
 public:
  virtual ~EventStream() = default;

  // Bound of what may wait for a client, whether it reads slowly or not at all.
  static constexpr int64_t kMaxWaitingBytes = 1 << 20;

  // Queues an event; deltas that were not sent yet are merged. False: more than
  // kMaxWaitingBytes would wait; the event is dropped and the request has to
  // end.
  virtual bool Send(v1::GenerateEvent event) = 0;

  // Ends the stream with `status`, after all queued events; once Send has
  // returned false, without them and at once.
  virtual void Close(const absl::Status& status) = 0;
};

}  // namespace ring
