// Ranks that are real processes without MPI: for tests that kill them.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "parallel/control_channel.h"

namespace ring {

// How a rank's process ended.
struct RankEnd {
  bool ended = false;  // false: it had to be killed at the deadline
  int exit_code = -1;  // of a process that exited
  int signal = 0;      // of a process that a signal ended
};

// Forks one process a rank, runs `body(control)` in it and lets it _exit with
// the result. Returns when all have ended or the deadline has passed; then no
// process is left. Called by a process with a single thread.
std::vector<RankEnd> RunProcesses(
    int ranks, const std::function<int(ControlChannel* control)>& body,
    std::chrono::seconds deadline);

}  // namespace ring
