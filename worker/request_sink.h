// The seam between the stream to the coordinator and the scheduler: requests
// go down through RequestSink, events come up through EventSink. Neither side
// ever waits for the other.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "worker/generation_request.h"

namespace ring {

// Takes requests. Implemented by the scheduler; called on gRPC threads, so
// thread-safe, and no call waits for a step of the engine.
class RequestSink {
 public:
  virtual ~RequestSink() = default;

  // Queues a request. RESOURCE_EXHAUSTED when the queue is full;
  // INVALID_ARGUMENT when it can never fit, with the numbers. After an error
  // no event follows for this id.
  virtual absl::Status Submit(GenerationRequest request) = 0;

  // Frees all that the request holds, at the latest two steps later. An
  // unknown or finished id is ignored. No event follows a Cancel, except one
  // that was on its way.
  virtual void Cancel(uint64_t id) = 0;

  // The same for one completion, whose first token has come; ignored before.
  virtual void CancelCompletion(uint64_t id, int completion) = 0;

  // Cancels every request: the coordinator is gone.
  virtual void CancelAll() = 0;

  // The group will get no more requests: what runs finishes, then the group
  // ends.
  virtual void Drain() = 0;
};

// Takes news. Implemented by the link to the coordinator; called on the engine
// thread. Thread-safe, never blocks: what cannot be sent yet is kept, events of
// a request being merged.
class EventSink {
 public:
  virtual ~EventSink() = default;

  virtual void Publish(std::vector<TokenEvent> events) = 0;

  // Replaces a report that was not sent yet.
  virtual void PublishLoad(const LoadReport& load) = 0;
};

}  // namespace ring
