// Ends this rank when a rank of the group has failed.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "parallel/progress.h"
#include "parallel/side_link.h"
#include "worker/failure_judge.h"

namespace ring {

// A thread that polls the side link, judges, and at the first failure tells
// the other ranks, writes one incident line and `_exit`s with
// kIncidentExitCode: soon the whole group is gone, every rank having named the
// same culprit. Touches neither MPI nor a device. A rank that is silent but
// alive is killed by the ranks that run beside it, as it cannot end itself.
//
// Runs from before loading until Stop.
class Watchdog {
 public:
  struct Options {
    FailureJudge::Options judge;
    // Between two judgements at most.
    std::chrono::milliseconds interval = std::chrono::milliseconds(250);
    // How long the other ranks have to take the notice.
    std::chrono::milliseconds announce_patience = std::chrono::seconds(1);
    // Also append the incident line here; empty: standard error only.
    std::string incident_file;
  };

  // `link` and `progress` outlive the watchdog.
  Watchdog(SideLink* link, const Progress* progress, const Options& options);
  // Without Stop the thread ends at once and the peers see a closed link.
  ~Watchdog();

  // This rank cannot go on, for this reason: ends the group as any failure
  // does, naming this rank. Any thread.
  [[noreturn]] void Fail(const std::string& what);

  // The clean end, called by every rank's engine thread: says goodbye, waits up
  // to `patience` until all peers have, and ends the thread. Failures no
  // longer count from here on.
  void Stop(std::chrono::milliseconds patience = std::chrono::seconds(2));

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace ring
