// Small host messages between the leader and all ranks of a worker group:
// bootstrap, plans, results. Never tensors.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace ring {

// Rank 0 is the leader. Collective: all ranks make the same calls in the same
// order from their engine thread. Implementations: MPI, and threads of one
// process for tests.
//
// Waiting never blocks inside MPI and uses little CPU. DEADLINE_EXCEEDED when
// a peer does not answer within the channel's deadline; the caller ends the
// rank then, as a half-done collective cannot be repeated.
class ControlChannel {
 public:
  virtual ~ControlChannel() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // After the call every rank's `message` equals the leader's.
  virtual absl::Status Broadcast(std::string* message) = 0;

  // On the leader `all` receives every rank's message in rank order; on the
  // others it is left empty. Messages may differ in length.
  virtual absl::Status Gather(absl::string_view message,
                              std::vector<std::string>* all) = 0;

  // As Gather, but every rank receives all messages.
  virtual absl::Status AllGather(absl::string_view message,
                                 std::vector<std::string>* all) = 0;
};

}  // namespace ring
