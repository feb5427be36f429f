// What a worker group says on its Join stream, whatever carries the stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/dispatcher.h"
#include "coordinator/group_link.h"
#include "coordinator/router.h"
#include "ring/v1/cluster.pb.h"

namespace ring {

// What a group says of itself. FAILED_PRECONDITION: it speaks another protocol
// version or has another model than `model_digest`. INVALID_ARGUMENT: a value
// that no group can have.
absl::StatusOr<GroupInfo> ReadHello(const v1::Hello& hello,
                                    const std::string& model_digest);

// One group from its first message to the end of its stream. No message,
// whatever it says, harms other groups or the requests that they run.
class GroupSession {
 public:
  // Both outlive the session.
  GroupSession(const std::string* model_digest, Dispatcher* dispatcher)
      : model_digest_(*model_digest), dispatcher_(dispatcher) {}

  // Takes the next message; one call at a time. With Hello, the first, the
  // group joins: the dispatcher speaks to it through `link` until it leaves.
  // An error names what no group may say: the group has to leave, and the
  // stream to end with it. News of a request that the group does not run are
  // no error: a cancel may be on its way, and the news passes it.
  absl::Status Receive(const v1::FromWorker& message,
                       const std::shared_ptr<GroupLink>& link);

  // The group is gone: its requests end with UNAVAILABLE and `why`. From any
  // thread; only the first call has an effect. One has to follow the last
  // Receive.
  void Leave(const absl::Status& why);

 private:
  absl::Status Join(const v1::FromWorker& message,
                    const std::shared_ptr<GroupLink>& link);

  const std::string& model_digest_;
  Dispatcher* const dispatcher_;
  std::atomic<int64_t> group_{0};  // 0: no Hello yet
};

}  // namespace ring
