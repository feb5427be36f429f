// When a client that was sent away should try again.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"

namespace ring {

// Key of the trailing metadata that tells a client; the value is in
// milliseconds.
inline constexpr char kRetryAfterMetadata[] = "retry-after-ms";

// A status with this payload tells the client when to try again.
absl::Status WithRetryAfter(absl::Status status,
                            std::chrono::milliseconds retry_after);
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

// Estimates from how long groups had the requests that have ended. Idle times
// do not count, so a server that was idle before a rush is not taken for a slow
// one. Plain bookkeeping: not thread-safe.
class RetryEstimate {
 public:
  static constexpr std::chrono::milliseconds kMin{100};
  static constexpr std::chrono::milliseconds kMax{60000};

  // A request has ended that a group had for `duration`.
  void OnEnd(std::chrono::duration<double, std::milli> duration);

  // Until half of the `waiting` requests are with a group, when `running` ones
  // last as long as those before them did; in [kMin, kMax]. Until one has ended
  // a request is taken to last a second.
  std::chrono::milliseconds Get(int64_t running, int64_t waiting) const;

 private:
  double mean_ms_ = 1000;
  int64_t ends_ = 0;
};

}  // namespace ring
