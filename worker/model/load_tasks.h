// Runs the pieces of a long load on a few threads, with progress in the log.
#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ring {

// Calls task(i) for i = 0 .. count - 1, begun in that order, on `threads`
// threads of its own; the caller waits. A task returns the bytes it brought.
// The first error stops the rest from starting and is returned. Every 10 s
// one line says how many of `total_bytes` are done.
absl::Status RunLoadTasks(
    const std::string& what, int64_t count, int64_t total_bytes, int threads,
    absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> task);

}  // namespace ring
