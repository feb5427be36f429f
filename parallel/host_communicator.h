// What communicators over host memory have in common.
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
// backend's ResidualNorm over the ranks' addends in rank order.
//
// The backend's device pointers must be host pointers. Backend and progress
// outlive the communicator. Confined to the engine thread.
class HostCommunicator : public Communicator {
 public:
  struct Options {
    Backend* backend = nullptr;
    Progress* progress = nullptr;
    // The largest ReduceRows: rows that this rank keeps, their columns. Memory
    // for size() addends of that many fp32 values is taken at construction.
    int64_t max_reduce_rows = 0;
    int64_t max_reduce_cols = 0;
  };

  void AllGather(const void* send, void* recv, int64_t bytes) final;
  void AllToAll(const void* send, absl::Span<const int64_t> send_bytes,
                void* recv, absl::Span<const int64_t> recv_bytes) final;
  void ExchangeCounts(absl::Span<const int64_t> counts,
                      absl::Span<int64_t> counts_out) final;
  void ReduceRows(const ReduceRowsArgs& args) final;

 protected:
  // Memory for ReduceRows; RESOURCE_EXHAUSTED from the backend.
  static absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateParts(
      const Options& options, int size);

  HostCommunicator(const Options& options, std::unique_ptr<DeviceBuffer> parts);

  // Moves the blocks; done on return. The k-th block that rank a sends to rank
  // b lands in the k-th block that b receives from a, and both say the same
  // number of bytes, which is never 0. A rank never sends to itself.
  virtual void Exchange(absl::Span<const SendBlock> sends,
                        absl::Span<const RecvBlock> recvs) = 0;

 private:
  // Drops empty blocks, copies what a rank sends to itself.
  void Send(int to, const void* data, int64_t bytes);
  void Receive(int from, void* data, int64_t bytes);
  // Exchanges what Send and Receive have collected.
  void Flush();

  Backend* const backend_;
  Progress* const progress_;
  const std::unique_ptr<DeviceBuffer> parts_;
  // Reused between calls, so that a collective allocates nothing.
  std::vector<SendBlock> sends_;
  std::vector<RecvBlock> recvs_;
};

}  // namespace ring
