// Ends this rank when a rank of the group has failed.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "parallel/progress.h"
#include "parallel/side_link.h"

namespace ring {

// The judgement, apart from threads and sockets so that it can be tested with
// a made-up clock. Confined to the watchdog thread.
//
// A rank has failed when its link closes without a goodbye or stays silent for
// `silence`. A rank is stuck when its ticks stand still for `stall`, unless it
// is idle or has left, or waits in a collective while another rank still
// moves: the slower one may be working. Then the culprit is the rank that
// others wait for: one that is not waiting, else one that has begun the fewest
// collectives; the lowest rank among equals.
//
// If this thread itself has not run for `suspended`, all clocks start again:
// the whole machine stood still and nobody is to blame.
class FailureJudge {
 public:
  using Clock = std::chrono::steady_clock;

  struct Options {
    std::chrono::milliseconds silence = std::chrono::seconds(5);
    std::chrono::milliseconds stall = std::chrono::seconds(10);
    std::chrono::milliseconds suspended = std::chrono::seconds(2);
  };

  FailureJudge(int self, const Options& options);

  // `peers` as SideLink::Peers returns them, `own` this rank's progress. The
  // notice's rank is -1 while all is well.
  FailureNotice Judge(Clock::time_point now, const ProgressSnapshot& own,
                      const std::vector<PeerState>& peers);

 private:
  struct Track {
    ProgressSnapshot progress;
    Clock::time_point moved;
  };
  // Whether the rank is expected to move, and when it last did.
  const Track& Update(int rank, const ProgressSnapshot& progress,
                      Clock::time_point now);

  const int self_;
  const Options options_;
  Clock::time_point last_run_{};
  Clock::time_point clocks_start_{};
  std::vector<Track> tracks_;  // by rank; grown on first sight
};

// A thread of its own that polls the side link, judges, and at the first
// failure writes one incident line, tells the other ranks and `_exit`s with
// kIncidentExitCode: then the whole group is gone soon after, every rank
// naming the same culprit. Only the leader judges stalls, as only it sees all
// ranks; a follower watches the leader's link and obeys its notice.
//
// Runs from before loading until Stop. Touches neither MPI nor a device.
class Watchdog {
 public:
  struct Options {
    FailureJudge::Options judge;
    // Upper bound of the time between two looks.
    std::chrono::milliseconds interval = std::chrono::milliseconds(250);
    // How long to wait until the other ranks have taken the notice.
    std::chrono::milliseconds announce_patience = std::chrono::seconds(1);
    // Also append the incident line here; empty: standard error only.
    std::string incident_file;
  };

  // `link` and `progress` outlive the watchdog.
  Watchdog(SideLink* link, const Progress* progress, const Options& options);
  // REQUIRES: Stop was called.
  ~Watchdog();

  // This rank cannot go on: reports itself as the culprit, as for any other
  // failure, and does not return. Any thread.
  [[noreturn]] void Fail(absl::string_view what);

  // Clean end: says goodbye to the peers, waits up to `patience` for theirs,
  // ends the thread. Called by the engine thread of every rank.
  void Stop(std::chrono::milliseconds patience = std::chrono::seconds(2));

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ring
