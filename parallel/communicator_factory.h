// The communicators that fit the device of a rank.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/block_communicator.h"
#include "parallel/mesh.h"
#include "parallel/mpi_runtime.h"

namespace ring {

struct CommunicatorOptions {
  BlockCommunicator::Options collectives;
  // Lets several ranks use one GPU. Their collectives then go through sockets
  // and take milliseconds: for tests alone.
  bool share_gpu = false;
  // Small collectives between GPUs of one host write into each other's memory.
  bool peer_memory = true;
  // Told of an error within a collective; must end the process. Null: the rank
  // ends as by a failed CHECK.
  std::function<void(const std::string& what)> on_failure;
};

// MPI between CPUs and in a world of one rank, NCCL between GPUs. Collective
// over the world. The communicators end before the runtime and the backend.
//
// Errors of MpiRuntime::CreateCommunicators and of MakeNcclCommunicators.
absl::StatusOr<MeshCommunicators> MakeCommunicators(
    MpiRuntime* mpi, const Mesh& mesh, const CommunicatorOptions& options);

}  // namespace ring
