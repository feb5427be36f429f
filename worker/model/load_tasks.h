// Runs the pieces of a long load on a few threads, with progress in the log.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/progress.h"

namespace ring {

struct LoadOptions {
  int threads = 1;               // at least 1: reads in flight
  Progress* progress = nullptr;  // if set, ticks after each piece
  // Between two lines of the log that say how many bytes are done; more than 0,
  // which is after each piece where one thread brings them (ReadSlicesTo).
  std::chrono::milliseconds log_interval = std::chrono::seconds(10);
};

// That line: "<what> bytes=<done> of=<total> seconds=<since start>".
void LogLoad(absl::string_view what, int64_t done_bytes, int64_t total_bytes,
             std::chrono::steady_clock::time_point start);

// Calls task(i) for i = 0 .. count - 1, begun in that order, on options.threads
// threads of its own; the caller waits and logs. A task returns the bytes it
// brought of `total_bytes`. The first error stops the rest from starting and
// is returned.
absl::Status RunLoadTasks(
    const std::string& what, int64_t count, int64_t total_bytes,
    const LoadOptions& options,
    absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> task);

}  // namespace ring
