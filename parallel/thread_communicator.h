// Ranks that are threads of one process: for tests of everything above
// Communicator and ControlChannel.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "parallel/host_communicator.h"
#include "parallel/mesh.h"

namespace ring {

// Where a fixed set of threads meet. Thread-safe; outlives the communicators
// and channels made from it. One group serves one communicator per rank or one
// channel per rank, never both.
class ThreadGroup;

// All groups of a world of dp x tp threads. Each thread takes its own ends:
//
//   ThreadWorld world(/*tp=*/2, /*dp=*/2);
//   // thread of `rank`:
//   auto control = world.Control(rank, &progress);
//   auto axes = world.Communicators(mesh, options);
//
// Ends of one rank are taken once. Thread-safe; outlives all of them.
class ThreadWorld {
 public:
  ThreadWorld(int tp, int dp);
  ~ThreadWorld();

  // `progress` may be null; it outlives the channel. Calls that wait longer
  // than `deadline` return DEADLINE_EXCEEDED.
  std::unique_ptr<ControlChannel> Control(
      int rank, Progress* progress,
      std::chrono::milliseconds deadline = std::chrono::minutes(1));

  absl::StatusOr<MeshCommunicators> Communicators(
      const Mesh& mesh, const HostCommunicator::Options& options);

 private:
  const int tp_;
  std::unique_ptr<ThreadGroup> control_;
  std::unique_ptr<ThreadGroup> world_;
  std::vector<std::unique_ptr<ThreadGroup>> tp_groups_;  // by dp_rank
  std::vector<std::unique_ptr<ThreadGroup>> dp_groups_;  // by tp_rank
};

}  // namespace ring
