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
// Only the leader judges stalls, as only it hears all ranks. Both times count
// how long this judge has been at work: of the time between two calls at most
// `longest_gap`, since this process, and the others with it, may have stood
// still.
class FailureJudge {
 public:
  using Clock = std::chrono::steady_clock;

  struct Options {
    std::chrono::milliseconds silence = std::chrono::seconds(5);
    std::chrono::milliseconds stall = std::chrono::seconds(10);
    std::chrono::milliseconds longest_gap = std::chrono::seconds(1);
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
  // A rank's latest progress and signs of life, and when each last changed.
  struct Track {
    int rank = 0;
    ProgressSnapshot progress;
    Clock::duration moved_at;  // of ran_
    Clock::time_point heard;
    Clock::duration heard_at;  // of ran_
  };

  // The rank's track, after taking in what is known of it now.
  Track Follow(int rank, const ProgressSnapshot& progress,
               Clock::time_point heard);
  FailureNotice JudgeSilence(const std::vector<Track>& ranks) const;
  FailureNotice JudgeStalls(const std::vector<Track>& ranks) const;

  const int self_;
  const Options options_;
  Clock::time_point last_call_{};
  Clock::duration ran_{0};     // how long the judge has been at work
  std::vector<Track> tracks_;  // every rank seen so far
};

}  // namespace ring
