#include "parallel/communicator.h"

#include "kernels/base/status_macros.h"

namespace ring {

absl::Status MeshCommunicators::Close() const {
  for (Communicator* const axis : {world.get(), tp.get(), dp.get()}) {
    RING_RETURN_IF_ERROR(axis->Close());
  }
  return absl::OkStatus();
}

}  // namespace ring
