#include "coordinator/event_stream.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ring {
namespace {
constexpr char kRetryAfterPayload[] = "ring.retry_after_ms";
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

}  // namespace ring
