// What a person has to mend before a group can start: found on any rank and
// told to all, so that the group ends with one message and no incident.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/control_channel.h"
#include "parallel/host_identity.h"
#include "worker/engine_bytes.h"
#include "worker/flags.h"

namespace ring {

// Exit status of a rank whose group cannot run as it was started.
inline constexpr int kMistakeExitCode = 2;

// Collective. Empty when every rank passes OK. Else the message of the lowest
// rank that has one, the same text on all ranks; it begins with rank and host
// unless all ranks say the same. Errors as ControlChannel.
absl::StatusOr<std::string> FirstMistake(ControlChannel* control,
                                         const std::string& host_name,
                                         const absl::Status& own);

// Bytes that a rank is about to take of its device.
struct MemoryNeed {
  int64_t weights = 0;
  EngineBytes engine;

  int64_t total() const { return weights + engine.total(); }
};

// Collective: what the other ranks of this rank's host need. Those of another
// container do not count: its limit may be its own. `hosts` has one entry a
// rank.
absl::StatusOr<int64_t> BytesOfNeighbours(
    ControlChannel* control, const std::vector<HostIdentity>& hosts,
    int64_t own);

// RESOURCE_EXHAUSTED unless `available` bytes hold this rank and what
// `neighbours` need of the same memory; it has the parts, and names the flag
// that makes the largest smaller.
absl::Status CheckMemory(const WorkerFlags& flags, const MemoryNeed& need,
                         int64_t neighbours, int64_t available);

}  // namespace ring
