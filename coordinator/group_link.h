// The way to one worker group.
#pragma once

#include "absl/status/status.h"
#include "ring/v1/cluster.pb.h"

namespace ring {

// Thread-safe; no call blocks. The messages that wait are at most one Submit
// and one Cancel for each sequence that the group can run: the dispatcher
// gives it no more.
class GroupLink {
 public:
  virtual ~GroupLink() = default;

  virtual void Send(v1::ToWorker message) = 0;

  // Ends the stream with `status`. The group is told nothing more.
  virtual void Close(const absl::Status& status) = 0;
};

}  // namespace ring
