#include "parallel/mpi_runtime.h"

#include <mpi.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "parallel/core_share.h"
#include "parallel/host_identity.h"
#include "parallel/mpi_communicator.h"
#include "parallel/mpi_transport.h"

namespace ring {
namespace {

// One tag an axis keeps their messages apart.
enum Tag { kControlTag = 1, kWorldTag, kTpTag, kDpTag };

std::vector<int> Consecutive(int begin, int count, int stride = 1) {
  std::vector<int> ranks(count);
  for (int i = 0; i < count; ++i) ranks[i] = begin + i * stride;
  return ranks;
}

class MpiRuntimeImpl final : public MpiRuntime {
 public:
  explicit MpiRuntimeImpl(const Options& options) : options_(options) {}

  // The rest of Create, once MPI is initialised.
  absl::Status Start() {
    // Errors come back as codes; the default would abort without a word of
    // which call it was.
    if (MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN) !=
            MPI_SUCCESS ||
        MPI_Comm_size(MPI_COMM_WORLD, &size_) != MPI_SUCCESS ||
        MPI_Comm_rank(MPI_COMM_WORLD, &rank_) != MPI_SUCCESS) {
      return absl::InternalError("MPI does not describe its world");
    }
    const HostIdentity host = ThisHost();
    host_name_ = host.name;
    control_ = MakeMpiControlChannel(
        Transport(Consecutive(0, size_), kControlTag), options_.progress);
    std::vector<std::string> hosts;
    RING_RETURN_IF_ERROR(
        control_->AllGather(absl::StrCat(host.name, " ", host.boot), &hosts));
    std::vector<std::string> bound;
    RING_RETURN_IF_ERROR(
        control_->AllGather(absl::StrJoin(BoundCores(), " "), &bound));
    std::vector<std::vector<int>> bound_here;
    for (int r = 0; r < size_; ++r) {
      if (hosts[r] != hosts[rank_]) continue;
      if (r < rank_) ++local_rank_;
      ++local_size_;
      std::vector<int>& cores = bound_here.emplace_back();
      for (const absl::string_view core :
           absl::StrSplit(bound[r], ' ', absl::SkipEmpty())) {
        if (!absl::SimpleAtoi(core, &cores.emplace_back())) {
          return absl::InternalError("a rank lists its cores in another way");
        }
      }
    }
    cores_ = ShareOfCores(bound_here, local_rank_);
    return absl::OkStatus();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  int cores() const override { return cores_; }
  const std::string& host_name() const override { return host_name_; }
  ControlChannel* control() override { return control_.get(); }

  absl::StatusOr<MeshCommunicators> CreateCommunicators(
      const Mesh& mesh, const HostCommunicator::Options& options) override {
    RING_CHECK_EQ(mesh.world_size(), size_);
    RING_CHECK_EQ(mesh.rank(), rank_);
    MeshCommunicators axes;
    RING_ASSIGN_OR_RETURN(
        axes.world, MakeMpiCommunicator(
                        Transport(Consecutive(0, size_), kWorldTag), options));
    RING_ASSIGN_OR_RETURN(
        axes.tp,
        MakeMpiCommunicator(
            Transport(Consecutive(mesh.RankOf(mesh.dp_rank(), 0), mesh.tp()),
                      kTpTag),
            options));
    RING_ASSIGN_OR_RETURN(
        axes.dp,
        MakeMpiCommunicator(Transport(Consecutive(mesh.tp_rank(), mesh.dp(),
                                                  /*stride=*/mesh.tp()),
                                      kDpTag),
                            options));
    return axes;
  }

  absl::Status Shutdown() override {
    // Nobody finalizes before everybody is through with everything else.
    std::vector<std::string> all;
    RING_RETURN_IF_ERROR(control_->AllGather("shutdown", &all));
    control_.reset();
    // Finalizing waits for all ranks without a bound of its own; a rank that
    // dies meanwhile must not keep this one. The signal's default ends it.
    alarm(static_cast<unsigned>(options_.teardown.count()));
    const bool finalized = MPI_Finalize() == MPI_SUCCESS;
    alarm(0);
    return finalized ? absl::OkStatus()
                     : absl::InternalError("MPI_Finalize failed");
  }

 private:
  std::unique_ptr<MpiTransport> Transport(std::vector<int> members, int tag) {
    return MpiTransport::Create({std::move(members), tag, options_.deadline});
  }

  const Options options_;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 0;
  int cores_ = 1;
  std::string host_name_;
  std::unique_ptr<ControlChannel> control_;
};

}  // namespace

bool StartedByLauncher() {
  // Open MPI's own; PMIx, which srun and newer mpiruns speak; PMI before it.
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

absl::StatusOr<std::unique_ptr<MpiRuntime>> MpiRuntime::Create(
    const Options& options) {
  std::signal(SIGPIPE, SIG_IGN);
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) !=
      MPI_SUCCESS) {
    return absl::InternalError("MPI_Init_thread failed");
  }
  if (provided < MPI_THREAD_FUNNELED) {
    return absl::FailedPreconditionError(
        "this MPI library does not give MPI_THREAD_FUNNELED, which the worker "
        "needs to have threads beside MPI");
  }
  auto runtime = std::make_unique<MpiRuntimeImpl>(options);
  RING_RETURN_IF_ERROR(runtime->Start());
  return runtime;
}

}  // namespace ring
