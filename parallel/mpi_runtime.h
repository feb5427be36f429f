// MPI's life in this process, and the ends that the rest of the rank uses.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "parallel/host_communicator.h"
#include "parallel/mesh.h"

namespace ring {

// Whether mpirun, srun or the like has made this process one rank of a world,
// as its environment says. Before MPI is initialised.
bool StartedByLauncher();

// One per process, made first in main() by the thread that becomes the engine
// thread, and confined to it. MPI is initialised with MPI_THREAD_FUNNELED and
// never blocks: all waiting is testing in a loop that yields, then sleeps up
// to 1 ms. SIGPIPE is ignored from then on, as a TCP peer that dies would kill
// this rank silently otherwise.
//
// MPI tells nobody that a rank has died; calls that involve it wait until the
// deadline, or until the watchdog ends this rank.
class MpiRuntime {
 public:
  struct Options {
    // How long any wait may last before it counts as failed: a Status from the
    // control channel, the end of the rank from a communicator. Longer than
    // ranks may differ in loading time; the watchdog is much quicker.
    std::chrono::milliseconds deadline = std::chrono::minutes(30);
    // Shutdown kills the process when it takes longer.
    std::chrono::seconds teardown = std::chrono::seconds(10);
    // Counts control messages as collectives too. May be null; outlives this.
    Progress* progress = nullptr;
  };

  // FAILED_PRECONDITION: MPI gives less than MPI_THREAD_FUNNELED. INTERNAL:
  // an MPI call failed, with MPI's own text. Run without mpirun it makes a
  // world of one rank.
  static absl::StatusOr<std::unique_ptr<MpiRuntime>> Create(
      const Options& options);

  // Without a clean Shutdown MPI is left as it is: finalizing would wait for
  // ranks that may be gone, and the launcher ends the group anyway.
  virtual ~MpiRuntime() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Among the ranks of this host, in rank order.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  virtual const std::string& host_name() const = 0;
  // Cores for this rank: ShareOfCores among the ranks of its host.
  virtual int cores() const = 0;

  // Lives as long as the runtime.
  virtual ControlChannel* control() = 0;

  // Collective over the world. The communicators end before the runtime.
  // Errors as Create, and RESOURCE_EXHAUSTED for their memory.
  virtual absl::StatusOr<MeshCommunicators> CreateCommunicators(
      const Mesh& mesh, const HostCommunicator::Options& options) = 0;

  // Collective, at the end of a run without failure, after the communicators
  // are gone. DEADLINE_EXCEEDED when a rank does not take part.
  virtual absl::Status Shutdown() = 0;
};

}  // namespace ring
