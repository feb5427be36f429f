// What communicators over host memory have in common.
#pragma once

#include "parallel/block_communicator.h"

namespace ring {

// Copies the blocks that a rank sends to itself, so that an implementation
// moves those between two ranks alone.
//
// The backend's device pointers must be host pointers; the collectives are
// done on return.
class HostCommunicator : public BlockCommunicator {
 protected:
  using BlockCommunicator::BlockCommunicator;

  // As Exchange, without blocks from a rank to itself.
  virtual void ExchangeWithPeers(absl::Span<const SendBlock> sends,
                                 absl::Span<const RecvBlock> recvs) = 0;

 private:
  void Exchange(const char* collective, absl::Span<const SendBlock> sends,
                absl::Span<const RecvBlock> recvs) final;

  std::vector<SendBlock> to_peers_;
  std::vector<RecvBlock> from_peers_;
};

}  // namespace ring
