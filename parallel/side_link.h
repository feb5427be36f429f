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
#include "absl/strings/string_view.h"
#include "parallel/control_channel.h"
#include "parallel/progress.h"

namespace ring {

// One moment of a rank's Progress.
struct ProgressSnapshot {
  Progress::Phase phase = Progress::Phase::kStarting;
  int32_t layer = -1;
  int64_t step = -1;
  int64_t collective = 0;
  int64_t ticks = 0;

  static ProgressSnapshot Of(const Progress& progress);
};

// "rank 2 died, there, because of this": the same on every rank.
struct FailureNotice {
  int rank = -1;              // the culprit, as far as the reporter can tell
  ProgressSnapshot progress;  // where the culprit was last seen
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
  ProgressSnapshot progress;                         // last heartbeat
  std::chrono::steady_clock::time_point last_heard;  // any message
};

// Where a rank runs; every rank knows all of them.
struct RankAddress {
  std::string host;     // for people
  std::string machine;  // equal for processes that can signal each other
  int64_t pid = 0;
};

// The leader (rank 0) has one link to each follower, a follower one to the
// leader. A world of one rank has none and every call returns at once.
//
// Two threads use it: the *engine thread* parks, wakes and says goodbye; the
// *watchdog thread* calls Poll again and again, which does all reading, and
// nothing arrives while nobody polls. Thread-safe.
class SideLink {
 public:
  using Clock = std::chrono::steady_clock;

  struct Options {
    std::string host_name;
    // Address at which the leader listens, "10.0.0.5" or "ib0.node1". Empty:
    // loopback when all ranks share a network namespace, else every address of
    // this host that is not loopback. Followers try them in turn.
    std::string listen_address;
    std::chrono::milliseconds connect_deadline = std::chrono::seconds(30);
    std::chrono::milliseconds heartbeat = std::chrono::milliseconds(500);
  };

  // Collective: exchanges addresses and a random token over `control`, then
  // connects. A connection that does not know the token is dropped. UNAVAILABLE
  // names the address that could not be reached, DEADLINE_EXCEEDED the ranks
  // that did not call. `progress` outlives the link and goes out with the
  // heartbeats.
  static absl::StatusOr<std::unique_ptr<SideLink>> Create(
      ControlChannel* control, const Progress* progress,
      const Options& options);
  virtual ~SideLink() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // By rank, [size].
  virtual const std::vector<RankAddress>& addresses() const = 0;

  // --- Engine thread. ---

  // Followers: blocks, without using CPU, until the leader has called Wake as
  // often as this rank has called Park, so that a Wake before its Park is not
  // lost. The plan that makes all ranks park and the next plan stand around
  // it: the leader calls Wake once after each plan that parks. CANCELLED when
  // the link has ended; the watchdog deals with that.
  virtual absl::Status Park() = 0;
  // Leader: see Park.
  virtual void Wake() = 0;
  // Tells the peers that this rank ends in good order. Call it on all ranks
  // when the engines have stopped.
  virtual void SayGoodbye() = 0;

  // --- Watchdog thread. ---

  // Waits up to `timeout` for news, then handles all that has come, and sends
  // a heartbeat when one is due. Returns at once after Interrupt.
  virtual void Poll(std::chrono::milliseconds timeout) = 0;
  // One entry a link, rising ranks.
  virtual std::vector<PeerState> Peers() const = 0;
  // The first notice that a peer has sent; rank -1 when there is none.
  virtual FailureNotice Notice() const = 0;
  // Sends the notice over all open links and waits up to `patience` until the
  // peers have closed theirs, so that it is not lost with this process.
  virtual void Announce(const FailureNotice& notice,
                        std::chrono::milliseconds patience) = 0;

  // --- Any thread. ---

  // Makes the current or the next Poll return.
  virtual void Interrupt() = 0;
};

}  // namespace ring
