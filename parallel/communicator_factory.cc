#include "parallel/communicator_factory.h"

#include "kernels/base/check.h"
#if RING_WITH_CUDA
#include "parallel/nccl_communicator.h"
#endif

namespace ring {

absl::StatusOr<MeshCommunicators> MakeCommunicators(
    MpiRuntime* mpi, const Mesh& mesh, const CommunicatorOptions& options) {
  Backend* const backend = options.collectives.backend;
  if (mesh.world_size() > 1 && backend->native_queue(Queue::kMain) != nullptr) {
#if RING_WITH_CUDA
    return MakeNcclCommunicators(mesh, mpi->control(), options);
#else
    RING_CHECK(false) << backend->description() << " without a communicator";
#endif
  }
  return mpi->CreateCommunicators(mesh, options.collectives);
}

}  // namespace ring
