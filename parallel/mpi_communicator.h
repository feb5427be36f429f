// Communicator and ControlChannel over MPI.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/control_channel.h"
#include "parallel/host_communicator.h"
#include "parallel/mpi_transport.h"

namespace ring {

// The transport's errors end the rank: a collective cannot fail halfway.
absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(
    std::unique_ptr<MpiTransport> transport,
    const HostCommunicator::Options& options);

// `progress` may be null; it outlives the channel.
std::unique_ptr<ControlChannel> MakeMpiControlChannel(
    std::unique_ptr<MpiTransport> transport, Progress* progress);

}  // namespace ring
