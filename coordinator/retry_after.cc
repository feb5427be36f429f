#include "coordinator/retry_after.h"

#include <algorithm>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ring {
namespace {

constexpr char kRetryAfterPayload[] = "ring.retry_after_ms";

// Of the newest request in the moving average.
constexpr double kLeastWeight = 0.1;

}  // namespace

absl::Status WithRetryAfter(absl::Status status,
                            std::chrono::milliseconds retry_after) {
  status.SetPayload(kRetryAfterPayload,
                    absl::Cord(absl::StrCat(retry_after.count())));
  return status;
}

std::optional<std::chrono::milliseconds> RetryAfter(
    const absl::Status& status) {
  const absl::optional<absl::Cord> payload =
      status.GetPayload(kRetryAfterPayload);
  int64_t milliseconds = 0;
  if (!payload.has_value() ||
      !absl::SimpleAtoi(std::string(*payload), &milliseconds)) {
    return std::nullopt;
  }
  return std::chrono::milliseconds(milliseconds);
}

void RetryEstimate::OnEnd(std::chrono::duration<double, std::milli> duration) {
  ++ends_;
  const double weight =
      std::max(1.0 / static_cast<double>(ends_), kLeastWeight);
  mean_ms_ += weight * (duration.count() - mean_ms_);
}

std::chrono::milliseconds RetryEstimate::Get(int64_t running,
                                             int64_t waiting) const {
  // Little's law: as many end per second as run, divided by how long one does.
  const double interval_ms =
      mean_ms_ / static_cast<double>(std::max<int64_t>(running, 1));
  const double wait_ms = interval_ms * (1 + static_cast<double>(waiting) / 2);
  return std::chrono::milliseconds(static_cast<int64_t>(
      std::clamp(wait_ms, static_cast<double>(kMin.count()),
                 static_cast<double>(kMax.count()))));
}

}  // namespace ring
