// Communicator over NCCL, between the GPUs of the ranks.
#pragma once

#include "absl/status/statusor.h"
#include "parallel/communicator.h"
#include "parallel/communicator_factory.h"
#include "parallel/control_channel.h"
#include "parallel/mesh.h"

namespace ring {

// Collectives are enqueued on the backend's main queue and can be recorded by
// RunStep; connections are made and their memory is taken here, not at first
// use. While Synchronize waits, the engine thread looks for errors that NCCL
// found on its own.
//
// An error of NCCL goes to options.on_failure with the name of the collective:
// nothing is aborted, as that can hang as well; the process ends. Making and
// closing communicators waits for the other ranks a minute at most.
//
// NVLink multicast is off unless NCCL_NVLS_ENABLE says otherwise.
//
// Collective over the world of `control`, by the engine thread. `control`
// outlives the communicators. FAILED_PRECONDITION: two ranks have the same GPU
// and options.share_gpu is not set. DEADLINE_EXCEEDED: a rank does not take
// part. INTERNAL: NCCL's own errors. RESOURCE_EXHAUSTED from the backend.
absl::StatusOr<MeshCommunicators> MakeNcclCommunicators(
    const Mesh& mesh, ControlChannel* control,
    const CommunicatorOptions& options);

}  // namespace ring
