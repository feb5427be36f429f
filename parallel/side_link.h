// The TCP star between the leader and its followers: waking, heartbeats and
// news of failure. It touches neither MPI nor a device.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/control_channel.h"
#include "parallel/host_identity.h"
#include "parallel/progress.h"

namespace ring {

// One moment of a rank's Progress.
struct ProgressSnapshot {
  Progress::Phase phase = Progress::Phase::kStarting;
  int32_t layer = -1;
  int32_t rows = 0;
  int64_t step = -1;
  int64_t collective = 0;
  int64_t ticks = 0;

  static ProgressSnapshot Of(const Progress& progress);
  bool operator==(const ProgressSnapshot& other) const = default;
};

// Who failed and how: the same on every rank.
struct FailureNotice {
  enum class Kind : int32_t {
    kNone,      // all is well
    kClosed,    // its link ended without a goodbye
    kSilent,    // it lives, or its link would end, but sends nothing
    kStalled,   // its engine thread does not move
    kReported,  // it said so itself
  };
  Kind kind = Kind::kNone;
  int32_t rank = -1;          // the culprit, as far as the reporter can tell
  ProgressSnapshot progress;  // where it was last seen
  std::string what;           // "connection closed", "silent for 5.0 s"
};

// What a rank knows about a peer it has a link to. Times are on this rank's
// steady clock.
struct PeerState {
  enum class Link {
    kOpen,
    kGoodbye,  // has left in good order; the end of its link means nothing
    kClosed    // the link ended without a goodbye
  };
  int rank = -1;
  Link link = Link::kOpen;
  ProgressSnapshot progress;                         // of the last heartbeat
  std::chrono::steady_clock::time_point last_heard;  // any message
};

// The leader (rank 0) has one link to each follower, a follower one to the
// leader. A world of one rank has none; its calls do nothing.
//
// Two threads use it: the *engine thread* parks, wakes and says goodbye; the
// *watchdog thread* calls Poll again and again, which does all reading, so
// nothing arrives while nobody polls. All ranks run the same program: messages
// are in native byte order.
class SideLink {
 public:
  struct Options {
    // Of this rank, for people; empty: the system's.
    std::string host_name;
    // Address or name at which the leader listens. Empty: loopback when all
    // ranks share a network namespace, else every address of its host that is
    // not loopback; followers try them in turn.
    std::string listen_address;
    std::chrono::milliseconds connect_deadline = std::chrono::seconds(30);
    std::chrono::milliseconds heartbeat = std::chrono::milliseconds(500);
  };

  // Collective: exchanges addresses and a random token over `control`, then
  // connects; a connection that does not know the token is dropped.
  // UNAVAILABLE names the addresses that a follower could not reach,
  // DEADLINE_EXCEEDED the followers that did not call the leader. `progress`
  // outlives the link and goes out with its heartbeats.
  static absl::StatusOr<std::unique_ptr<SideLink>> Create(
      ControlChannel* control, const Progress* progress,
      const Options& options);
  virtual ~SideLink() = default;

  virtual int rank() const = 0;
  // Where the ranks run. [world size]. Any thread.
  virtual const std::vector<HostIdentity>& hosts() const = 0;

  // --- Engine thread. ---

  // Followers: blocks, without using CPU, until the leader has called Wake as
  // often as this rank has called Park. The leader calls Wake once for each
  // plan that makes all ranks park, at any time after it has sent that plan:
  // a Wake that comes before its Park is not lost. CANCELLED when the link has
  // ended.
  virtual absl::Status Park() = 0;
  // Leader. A message a follower, sent at once.
  virtual void Wake() = 0;
  // Tells the peers that this rank ends in good order; heartbeats stop. Call
  // it on every rank when the engines have stopped.
  virtual void SayGoodbye() = 0;

  // --- Watchdog thread. ---

  // Waits up to `timeout` for news, handles all that has come, and sends a
  // heartbeat when one is due.
  virtual void Poll(std::chrono::milliseconds timeout) = 0;
  // One entry a link, rising ranks.
  virtual std::vector<PeerState> Peers() const = 0;
  // The first notice that a peer has sent; kNone if there is none.
  virtual FailureNotice Notice() const = 0;
  // Sends the notice over all links and waits up to `patience` until it has
  // arrived, so that it is not lost when this process ends: a leader until the
  // followers have ended, a follower until the leader has told everybody.
  virtual void Announce(const FailureNotice& notice,
                        std::chrono::milliseconds patience) = 0;

  // --- Any thread. ---

  // Makes the current Poll, or else the next, return at once.
  virtual void Interrupt() = 0;
};

}  // namespace ring
