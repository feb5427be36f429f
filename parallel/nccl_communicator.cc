#include "parallel/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "parallel/host_identity.h"
#include "parallel/peer_memory.h"

namespace ring {
namespace {

constexpr auto kDeadline = std::chrono::minutes(1);

absl::Status CudaStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(call, ": ", cudaGetErrorString(error)));
}

// `comm` may be null.
std::string NcclError(ncclResult_t result, ncclComm_t comm,
                      absl::string_view call) {
  return absl::StrCat(call, ": ", ncclGetErrorString(result), " (",
                      ncclGetLastError(comm), ")");
}

// Runs a call that waits for other ranks, on a thread of its own so that the
// wait has an end. NCCL's way to bound it, communicators that do not block,
// starts a thread for every collective instead. DEADLINE_EXCEEDED leaves the
// thread behind; the rank has to end then.
absl::Status CallWithDeadline(const char* name, int device,
                              std::function<ncclResult_t()> call) {
  // Outlives this function if the call does.
  struct Shared {
    Mutex mutex;
    CondVar ended;
    bool done GUARDED_BY(mutex) = false;
    absl::Status status GUARDED_BY(mutex);
  };
  const auto shared = std::make_shared<Shared>();
  std::thread([shared, name, device, call = std::move(call)] {
    absl::Status status = CudaStatus(cudaSetDevice(device), "cudaSetDevice");
    if (status.ok()) {
      const ncclResult_t result = call();
      if (result != ncclSuccess) {
        status = absl::InternalError(NcclError(result, nullptr, name));
      }
    }
    MutexLock lock(&shared->mutex);
    shared->status = std::move(status);
    shared->done = true;
    shared->ended.NotifyAll();
  }).detach();

  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  MutexLock lock(&shared->mutex);
  while (!shared->done) {
    if (!shared->ended.WaitUntil(&shared->mutex, deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat(name, ": another rank does not take part"));
    }
  }
  return shared->status;
}

// NCCL reads its settings at its first call; what the user has set stays.
void SetNcclDefaults(bool share_gpu, int rank) {
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  if (!share_gpu) return;
  // NCCL refuses a GPU twice in one host: to it, the ranks are on hosts of
  // their own that are connected by loopback sockets.
  setenv("NCCL_HOSTID", absl::StrCat(ThisHost().name, "-", rank).c_str(), 0);
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  setenv("NCCL_IB_DISABLE", "1", 0);
}

// NCCL's communicators of one rank, shared by the axes: what they need
// together, from the first connection to the last.
class NcclSession {
 public:
  NcclSession(const Mesh& mesh, ControlChannel* control,
              const CommunicatorOptions& options)
      : mesh_(mesh), control_(control), options_(options) {}

  // What is still open is left as it is.
  ~NcclSession() { backend()->set_wait_poll(nullptr); }

  absl::Status Connect() {
    RING_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device_), "cudaGetDevice"));
    if (!options_.share_gpu) RING_RETURN_IF_ERROR(CheckGpus());
    SetNcclDefaults(options_.share_gpu, mesh_.rank());
    std::vector<MeetingPoints> points;
    RING_RETURN_IF_ERROR(ExchangeMeetingPoints(&points));
    // Axes of one rank need no connection, and one that has all ranks takes
    // the world's.
    RING_RETURN_IF_ERROR(
        Open(points[0].world, mesh_.world_size(), mesh_.rank(), &world_));
    tp_ = dp_ = world_;
    if (HasTwoAxes()) {
      RING_RETURN_IF_ERROR(Open(points[mesh_.RankOf(mesh_.dp_rank(), 0)].tp,
                                mesh_.tp(), mesh_.tp_rank(), &tp_));
      RING_RETURN_IF_ERROR(Open(points[mesh_.RankOf(0, mesh_.tp_rank())].dp,
                                mesh_.dp(), mesh_.dp_rank(), &dp_));
    }
    backend()->set_wait_poll([this] { Poll(); });
    return absl::OkStatus();
  }

  Backend* backend() const { return options_.collectives.backend; }
  cudaStream_t stream() const {
    return static_cast<cudaStream_t>(backend()->native_queue(Queue::kMain));
  }
  ncclComm_t world() const { return world_; }
  ncclComm_t tp() const { return tp_; }
  ncclComm_t dp() const { return dp_; }

  // Collective over the world: the memory of an axis' ranks. Null where they
  // cannot reach each other's.
  absl::StatusOr<PeerMemory*> MapPeers(std::vector<int> members, int rank) {
    if (!options_.peer_memory || members.size() == 1) return nullptr;
    const BlockCommunicator::Options& sizes = options_.collectives;
    RING_ASSIGN_OR_RETURN(
        auto made,
        PeerMemory::Create(
            {.backend = backend(),
             .control = control_,
             .members = std::move(members),
             .rank = rank,
             .max_rows = sizes.max_reduce_rows,
             .max_row_bytes = sizes.max_reduce_cols * int64_t{sizeof(float)}}));
    if (made == nullptr) return nullptr;
    peer_memories_.push_back(std::move(made));
    return peer_memories_.back().get();
  }

  // The collective that is named by errors from now on.
  void Begin(const char* axis, const char* collective) {
    axis_ = axis;
    collective_ = collective;
  }
  void Check(ncclResult_t result, ncclComm_t comm, const char* call) const {
    if (result != ncclSuccess) Fail(NcclError(result, comm, call));
  }

  // Once, for all axes.
  absl::Status Close() {
    if (closed_) return absl::OkStatus();
    closed_ = true;
    backend()->Synchronize();
    backend()->set_wait_poll(nullptr);
    // NCCL waits for the end of every graph that holds a collective.
    backend()->ForgetSteps();
    for (const auto& peers : peer_memories_) peers->Unmap();
    for (const ncclComm_t comm : opened_) {
      RING_RETURN_IF_ERROR(
          CallWithDeadline("ncclCommFinalize", device_,
                           [comm] { return ncclCommFinalize(comm); }));
    }
    // Nobody takes connections down that a slower rank still finalizes over,
    // or frees memory that it has mapped.
    std::vector<std::string> unused;
    RING_RETURN_IF_ERROR(control_->AllGather("finalized", &unused));
    for (const ncclComm_t comm : opened_) {
      RING_RETURN_IF_ERROR(CallWithDeadline("ncclCommDestroy", device_, [comm] {
        return ncclCommDestroy(comm);
      }));
    }
    return absl::OkStatus();
  }

 private:
  // Where the ranks of the axes that a rank leads meet to be connected.
  struct MeetingPoints {
    ncclUniqueId world;
    ncclUniqueId tp;
    ncclUniqueId dp;
  };

  bool HasTwoAxes() const { return mesh_.tp() > 1 && mesh_.dp() > 1; }

  absl::Status CheckGpus() const {
    cudaDeviceProp properties;
    RING_RETURN_IF_ERROR(
        CudaStatus(cudaGetDeviceProperties(&properties, device_),
                   "cudaGetDeviceProperties"));
    const std::string own = absl::BytesToHexString(absl::string_view(
        properties.uuid.bytes, sizeof(properties.uuid.bytes)));
    std::vector<std::string> all;
    RING_RETURN_IF_ERROR(control_->AllGather(own, &all));
    for (size_t b = 0; b < all.size(); ++b) {
      for (size_t a = 0; a < b; ++a) {
        if (all[a] != all[b]) continue;
        return absl::FailedPreconditionError(absl::StrCat(
            "ranks ", a, " and ", b, " use the same GPU (", all[a],
            "): start no more ranks on a host than it has GPUs, or allow "
            "sharing for a test"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ExchangeMeetingPoints(std::vector<MeetingPoints>* points) const {
    MeetingPoints own = {};
    const auto lead = [](bool leads, ncclUniqueId* id) -> absl::Status {
      if (!leads) return absl::OkStatus();
      const ncclResult_t result = ncclGetUniqueId(id);
      if (result == ncclSuccess) return absl::OkStatus();
      return absl::InternalError(NcclError(result, nullptr, "ncclGetUniqueId"));
    };
    const bool two = HasTwoAxes();
    RING_RETURN_IF_ERROR(lead(mesh_.rank() == 0, &own.world));
    RING_RETURN_IF_ERROR(lead(two && mesh_.tp_rank() == 0, &own.tp));
    RING_RETURN_IF_ERROR(lead(two && mesh_.dp_rank() == 0, &own.dp));

    std::vector<std::string> all;
    RING_RETURN_IF_ERROR(control_->AllGather(
        absl::string_view(reinterpret_cast<const char*>(&own), sizeof(own)),
        &all));
    for (const std::string& bytes : all) {
      RING_CHECK_EQ(bytes.size(), sizeof(MeetingPoints));
      std::memcpy(&points->emplace_back(), bytes.data(), bytes.size());
    }
    return absl::OkStatus();
  }

  absl::Status Open(const ncclUniqueId& id, int size, int rank,
                    ncclComm_t* comm) {
    // Written by the thread of the call, which may outlive a failed Open.
    const auto made = std::make_shared<ncclComm_t>();
    RING_RETURN_IF_ERROR(
        CallWithDeadline("ncclCommInitRank", device_, [made, id, size, rank] {
          return ncclCommInitRank(made.get(), size, id, rank);
        }));
    *comm = *made;
    opened_.push_back(*made);
    return absl::OkStatus();
  }

  void Poll() const {
    for (const ncclComm_t comm : opened_) {
      ncclResult_t state = ncclSuccess;
      Check(ncclCommGetAsyncError(comm, &state), comm, "ncclCommGetAsyncError");
      if (state != ncclInProgress) Check(state, comm, "while waiting");
    }
  }

  void Fail(const std::string& error) const {
    const std::string what = absl::StrCat("NCCL failed in ", collective_,
                                          " of the ", axis_, " axis: ", error);
    if (options_.on_failure) options_.on_failure(what);
    RING_CHECK(false) << what;
  }

  const Mesh mesh_;
  ControlChannel* const control_;
  const CommunicatorOptions options_;
  int device_ = 0;
  std::vector<ncclComm_t> opened_;  // each once, in order
  std::vector<std::unique_ptr<PeerMemory>> peer_memories_;
  ncclComm_t world_ = nullptr;
  ncclComm_t tp_ = nullptr;
  ncclComm_t dp_ = nullptr;
  const char* axis_ = "";
  const char* collective_ = "";
  bool closed_ = false;
};

class NcclCommunicator final : public BlockCommunicator {
 public:
  struct Axis {
    const char* name;
    ncclComm_t comm;
    std::vector<int> members;  // world ranks
    int rank;                  // within members
  };

  // The session lives until its last axis is gone.
  NcclCommunicator(std::shared_ptr<NcclSession> session, const Axis& axis,
                   const Options& options, std::unique_ptr<DeviceBuffer> parts)
      : BlockCommunicator(options, std::move(parts)),
        session_(std::move(session)),
        axis_(axis) {}

  static absl::StatusOr<std::unique_ptr<Communicator>> Create(
      std::shared_ptr<NcclSession> session, const Axis& axis,
      const Options& options) {
    RING_ASSIGN_OR_RETURN(
        auto parts,
        AllocateParts(options, static_cast<int>(axis.members.size())));
    auto communicator = std::make_unique<NcclCommunicator>(
        std::move(session), axis, options, std::move(parts));
    RING_RETURN_IF_ERROR(communicator->ConnectPeers(options.backend));
    RING_ASSIGN_OR_RETURN(
        communicator->peers_,
        communicator->session_->MapPeers(axis.members, axis.rank));
    return communicator;
  }

  int rank() const override { return axis_.rank; }
  int size() const override { return static_cast<int>(axis_.members.size()); }
  absl::Status Close() override { return session_->Close(); }

 private:
  // NCCL connects two ranks when they first exchange something.
  absl::Status ConnectPeers(Backend* backend) {
    constexpr int64_t kBytes = 64;
    RING_ASSIGN_OR_RETURN(const auto buffer,
                          backend->Allocate(size() * kBytes));
    char* const all = static_cast<char*>(buffer->data());
    AllGather(all + rank() * kBytes, all, kBytes);
    backend->Synchronize();
    return absl::OkStatus();
  }

  void Exchange(const char* collective, absl::Span<const SendBlock> sends,
                absl::Span<const RecvBlock> recvs) override {
    const cudaStream_t stream = session_->stream();
    session_->Begin(axis_.name, collective);
    Check(ncclGroupStart(), "ncclGroupStart");
    for (const RecvBlock& recv : recvs) {
      Check(ncclRecv(recv.data, recv.bytes, ncclUint8, recv.from, axis_.comm,
                     stream),
            "ncclRecv");
    }
    for (const SendBlock& send : sends) {
      Check(ncclSend(send.data, send.bytes, ncclUint8, send.to, axis_.comm,
                     stream),
            "ncclSend");
    }
    Check(ncclGroupEnd(), "ncclGroupEnd");
  }

  bool AllGatherDirectly(const void* send, void* recv, int64_t bytes) override {
    return peers_ != nullptr && peers_->AllGather(send, recv, bytes);
  }
  bool ReduceRowsDirectly(const ReduceRowsArgs& args) override {
    return peers_ != nullptr && peers_->ReduceRows(args);
  }

  void Check(ncclResult_t result, const char* call) const {
    session_->Check(result, axis_.comm, call);
  }

  const std::shared_ptr<NcclSession> session_;
  const Axis axis_;
  PeerMemory* peers_ = nullptr;  // the session's; null: NCCL for all
};

}  // namespace

absl::StatusOr<MeshCommunicators> MakeNcclCommunicators(
    const Mesh& mesh, ControlChannel* control,
    const CommunicatorOptions& options) {
  const auto session = std::make_shared<NcclSession>(mesh, control, options);
  RING_RETURN_IF_ERROR(session->Connect());
  std::vector<int> world;
  std::vector<int> tp;
  std::vector<int> dp;
  for (int r = 0; r < mesh.world_size(); ++r) world.push_back(r);
  for (int t = 0; t < mesh.tp(); ++t) {
    tp.push_back(mesh.RankOf(mesh.dp_rank(), t));
  }
  for (int d = 0; d < mesh.dp(); ++d) {
    dp.push_back(mesh.RankOf(d, mesh.tp_rank()));
  }
  const BlockCommunicator::Options& sizes = options.collectives;
  MeshCommunicators axes;
  RING_ASSIGN_OR_RETURN(
      axes.world,
      NcclCommunicator::Create(
          session, {"world", session->world(), world, mesh.rank()}, sizes));
  RING_ASSIGN_OR_RETURN(
      axes.tp, NcclCommunicator::Create(
                   session, {"tp", session->tp(), tp, mesh.tp_rank()}, sizes));
  RING_ASSIGN_OR_RETURN(
      axes.dp, NcclCommunicator::Create(
                   session, {"dp", session->dp(), dp, mesh.dp_rank()}, sizes));
  return axes;
}

}  // namespace ring
