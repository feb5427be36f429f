// Small collectives between GPUs of one host that write into each other's
// memory: one kernel each, where a library needs several.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"

namespace ring {

// Every rank of an axis holds a region that the others have mapped. A row is
// pushed into all of them and announced by a flag; who waits for it sums on
// the spot. All calls are enqueued on the backend's main queue and can be
// recorded. Sums have the bits of Backend::ResidualNorm over parts in rank
// order.
//
// Every rank makes the same calls. Which calls are taken depends on nothing
// that ranks may see differently. Confined to the engine thread.
class PeerMemory {
 public:
  struct Options {
    Backend* backend = nullptr;
    ControlChannel* control = nullptr;  // of the world
    std::vector<int> members;           // world ranks of the axis
    int rank = 0;                       // within members
    int64_t max_rows = 0;               // of one call
    int64_t max_row_bytes = 0;
  };

  // Collective over the world. Null on all ranks if some rank cannot map the
  // memory of another rank of its axis. RESOURCE_EXHAUSTED from the backend.
  static absl::StatusOr<std::unique_ptr<PeerMemory>> Create(
      const Options& options);
  virtual ~PeerMemory() = default;

  // As Communicator's; false, and nothing done, for calls that are too large or
  // in which ranks keep unequal numbers of rows.
  virtual bool AllGather(const void* send, void* recv, int64_t bytes) = 0;
  virtual bool ReduceRows(const ReduceRowsArgs& args) = 0;

  // Lets go of the other ranks' memory. Before any rank frees its own.
  virtual void Unmap() = 0;
};

}  // namespace ring
