// Point-to-point messages over MPI, with the project's one way of waiting.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "parallel/block.h"

namespace ring {

// A set of ranks that exchange messages. Its ranks number the members; the
// tag keeps its messages apart from those of other transports with common
// members. Messages between two ranks arrive in the order they were sent. Made
// without communication. Confined to the engine thread.
//
// Waiting tests in a loop: for a short while it yields the core between tests,
// then it sleeps, longer each time up to 1 ms, so that ranks that share cores
// let each other run. After `deadline` a call returns DEADLINE_EXCEEDED; what
// it had begun cannot be undone, and the rank has to end. MPI's own errors are
// INTERNAL with MPI's text.
class MpiTransport {
 public:
  struct Options {
    std::vector<int> members;  // world ranks; this rank is one of them
    int tag = 0;
    std::chrono::milliseconds deadline = std::chrono::minutes(1);
  };

  // REQUIRES: MPI is initialised, and is not finalized before the end of the
  // transport.
  static std::unique_ptr<MpiTransport> Create(const Options& options);
  virtual ~MpiTransport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Moves all blocks, of sizes known to both sides, in order between any two
  // ranks; done on return. Larger blocks than MPI can count are cut.
  virtual absl::Status Exchange(absl::Span<const SendBlock> sends,
                                absl::Span<const RecvBlock> recvs) = 0;

  // Messages whose length the receiver does not know. Send only begins; the
  // message stays as it is until CompleteSends has returned. INVALID_ARGUMENT
  // above 1 GiB.
  virtual absl::Status Send(int to, absl::string_view message) = 0;
  virtual absl::Status CompleteSends() = 0;
  virtual absl::Status Receive(int from, std::string* message) = 0;
};

}  // namespace ring
