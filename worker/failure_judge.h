// Decides whether the group has failed, and by whom.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "parallel/side_link.h"

namespace ring {

// No threads, no sockets, no clock of its own: tests make up the time. Confined
// to one thread.
//
// All ranks have to name the same culprit, so what comes first counts: the word
// of a peer that has judged already; a link that closed without a goodbye, as
// that can be why this rank fails too; this rank's own failure; a peer that
// stays silent for `silence`; a rank that is stuck. A rank is stuck when its
// progress stands still for `stall`, unless it is idle, or waits in a
// collective while another rank still moves: it may be waiting for slow work.
// Of the stuck ranks the culprit is the one that others wait for: one that is
// not itself waiting, else the one that has begun the fewest collectives; the
// lowest rank among equals.
//
// Only the leader judges stalls, as only it hears all ranks. When nobody has
// called Judge for `suspended`, this process stood still itself, and all clocks
// start again.
class FailureJudge {
 public:
  using Clock = std::chrono::steady_clock;

  struct Options {
    std::chrono::milliseconds silence = std::chrono::seconds(5);
    std::chrono::milliseconds stall = std::chrono::seconds(10);
    std::chrono::milliseconds suspended = std::chrono::seconds(2);
  };

  // What a rank knows at one moment. Take `own_failure` before the rest: the
  // rest then shows what it may be a consequence of.
  struct Evidence {
    std::string own_failure;       // why this rank cannot go on; empty: it can
    FailureNotice told;            // SideLink::Notice
    ProgressSnapshot own;          // this rank's progress
    std::vector<PeerState> peers;  // SideLink::Peers
  };

  FailureJudge(int self, const Options& options)
      : self_(self), options_(options) {}

  FailureNotice Judge(Clock::time_point now, const Evidence& evidence);

 private:
  // A rank's latest progress and when it last changed.
  struct Track {
    int rank = 0;
    ProgressSnapshot progress;
    Clock::time_point moved;
  };

  // `moved` of the rank, after taking in its progress.
  Clock::time_point Follow(int rank, const ProgressSnapshot& progress,
                           Clock::time_point now);
  FailureNotice JudgeSilence(Clock::time_point now,
                             const std::vector<PeerState>& peers) const;
  FailureNotice JudgeStalls(Clock::time_point now,
                            const std::vector<Track>& ranks) const;

  const int self_;
  const Options options_;
  Clock::time_point last_call_{};
  Clock::time_point clocks_start_{};
  std::vector<Track> tracks_;  // every rank seen so far
};

}  // namespace ring
