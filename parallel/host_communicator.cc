#include "parallel/host_communicator.h"

#include <cstring>

#include "kernels/base/check.h"

namespace ring {

void HostCommunicator::Exchange(const char*, absl::Span<const SendBlock> sends,
                                absl::Span<const RecvBlock> recvs) {
  to_peers_.clear();
  from_peers_.clear();
  // The k-th block sent to oneself meets the k-th block received from oneself.
  size_t next_send = 0;
  for (const RecvBlock& recv : recvs) {
    if (recv.from != rank()) {
      from_peers_.push_back(recv);
      continue;
    }
    while (next_send < sends.size() && sends[next_send].to != rank()) {
      ++next_send;
    }
    RING_CHECK_LT(next_send, sends.size());
    const SendBlock& send = sends[next_send++];
    RING_CHECK_EQ(send.bytes, recv.bytes);
    std::memcpy(recv.data, send.data, recv.bytes);
  }
  for (const SendBlock& send : sends) {
    if (send.to != rank()) to_peers_.push_back(send);
  }
  ExchangeWithPeers(to_peers_, from_peers_);
}

}  // namespace ring
