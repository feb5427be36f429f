// What all communicators have in common: collectives made of moved blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "parallel/block.h"
#include "parallel/communicator.h"
#include "parallel/progress.h"

namespace ring {

// Builds every collective of Communicator from one primitive, Exchange, so an
// implementation only moves blocks between ranks. Sums are taken by the
// backend's ResidualNorm over the ranks' addends in rank order, so they have
// the same bits whatever connects the ranks. A communicator of one rank copies
// within its device.
//
// Backend and progress outlive the communicator. Confined to the engine
// thread.
class BlockCommunicator : public Communicator {
 public:
  struct Options {
    Backend* backend = nullptr;
    Progress* progress = nullptr;
    // The largest ReduceRows: rows that a rank keeps, their columns. Memory for
    // size() addends of that many fp32 values is taken at construction, up to
    // max_parts_bytes: a ReduceRows that needs more takes several rounds. Equal
    // on all ranks.
    int64_t max_reduce_rows = 0;
    int64_t max_reduce_cols = 0;
    int64_t max_parts_bytes = int64_t{64} << 20;
  };

  void AllGather(const void* send, void* recv, int64_t bytes) final;
  void AllToAll(absl::Span<const AllToAllRows> arrays,
                absl::Span<const int64_t> send_rows,
                absl::Span<const int64_t> recv_rows) final;
  void ReduceRows(const ReduceRowsArgs& args) final;

 protected:
  // Memory for ReduceRows; RESOURCE_EXHAUSTED from the backend.
  static absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateParts(
      const Options& options, int size);

  BlockCommunicator(const Options& options,
                    std::unique_ptr<DeviceBuffer> parts);

  // Moves the blocks of one `collective` (its name), those that a rank sends
  // to itself included. The k-th block that rank a sends to rank b lands in the
  // k-th block that b receives from a, and both say the same number of bytes,
  // which is never 0. Called with more than one rank only.
  virtual void Exchange(const char* collective,
                        absl::Span<const SendBlock> sends,
                        absl::Span<const RecvBlock> recvs) = 0;

  // Faster ways for small calls, with the same results. False leaves the call
  // to Exchange; all ranks say the same.
  virtual bool AllGatherDirectly(const void*, void*, int64_t) { return false; }
  virtual bool ReduceRowsDirectly(const ReduceRowsArgs&) { return false; }

 private:
  // ReduceRows of the rows [begin, begin + count) among those that each rank
  // keeps, as far as it keeps so many.
  void ReduceSome(const ReduceRowsArgs& args, int64_t begin, int64_t count);

  // Drop empty blocks, and those that are sent to where they lie.
  void Move(int peer, const void* send, int64_t send_bytes, void* recv,
            int64_t recv_bytes);
  // Exchanges what Move has collected.
  void Flush(const char* collective);

  Backend* const backend_;
  Progress* const progress_;
  const std::unique_ptr<DeviceBuffer> parts_;
  // Reused between calls, so that a collective allocates nothing.
  std::vector<SendBlock> sends_;
  std::vector<RecvBlock> recvs_;
};

}  // namespace ring
