// Point-to-point messages over MPI, with the project's one way of waiting.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/block.h"

namespace ring {

// A private duplicate of an MPI communicator. Messages between two ranks
// arrive in the order they were sent. Confined to the engine thread.
//
// Waiting tests in a loop: first it yields the core between tests, then it
// sleeps, 50 us at first and up to 1 ms, so that ranks that share cores let
// each other run. After `deadline` a call returns DEADLINE_EXCEEDED; what it
// had begun can not be used any more and the rank has to end. MPI's own errors
// are INTERNAL with MPI's text.
class MpiTransport {
 public:
  // Collective over the world: the ranks with the same `color` form one
  // transport, ordered by `key`. MPI is initialised.
  static absl::StatusOr<std::unique_ptr<MpiTransport>> Split(
      int color, int key, std::chrono::milliseconds deadline);
  virtual ~MpiTransport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Moves all blocks, of known sizes; done on return. Blocks larger than MPI's
  // int counts are cut into pieces.
  virtual absl::Status Exchange(absl::Span<const SendBlock> sends,
                                absl::Span<const RecvBlock> recvs) = 0;

  // One message whose length the receiver does not know: begun with Send, done
  // when Complete returns; the data stays as it is until then.
  // INVALID_ARGUMENT above 1 GiB.
  virtual absl::Status Send(int to, const std::string& message) = 0;
  virtual absl::Status Complete() = 0;
  virtual absl::Status Receive(int from, std::string* message) = 0;

  // Returns when all ranks have called it.
  virtual absl::Status Barrier() = 0;
};

}  // namespace ring
