// How the ranks of a world find each other's sockets.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/control_channel.h"
#include "parallel/host_identity.h"
#include "parallel/side_link.h"
#include "parallel/socket.h"

namespace ring {

struct SideLinkSockets {
  std::vector<HostIdentity> hosts;  // by rank
  // The leader: one a follower, rank 1 first. A follower: the leader's.
  std::vector<Fd> links;
};

// Collective over `control`; see SideLink::Create for options and errors. A
// failure of the leader to listen is returned on every rank.
absl::StatusOr<SideLinkSockets> ConnectSideLinks(
    ControlChannel* control, const SideLink::Options& options);

}  // namespace ring
