// How the commands of `ring` reach a coordinator.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/cli/flags.h"

namespace grpc {
class Channel;
}

namespace ring {

// A channel; nothing is sent yet. INVALID_ARGUMENT or NOT_FOUND: TLS files.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(
    const ConnectionFlags& flags);

// Prints what failed, at which address and what to try; returns the exit code
// of a failed command, 1.
int ReportFailure(const std::string& what, const ConnectionFlags& flags,
                  const absl::Status& status);

}  // namespace ring
