#include "parallel/thread_communicator.h"

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"

namespace ring {

class ThreadGroup {
 public:
  using Clock = std::chrono::steady_clock;

  explicit ThreadGroup(int size) : size_(size), items_(size) {}

  int size() const { return size_; }

  // Shows `item` to the other ranks and waits until all have shown theirs;
  // false if they have not by `deadline`. Every Show is followed by a Leave.
  bool Show(int rank, const void* item, Clock::time_point deadline) {
    MutexLock lock(&mutex_);
    items_[rank] = item;
    return Meet(deadline);
  }

  // What `rank` shows; between Show and Leave.
  const void* Shown(int rank) {
    MutexLock lock(&mutex_);
    return items_[rank];
  }

  // Waits until no rank looks at the items any more.
  bool Leave(Clock::time_point deadline) {
    MutexLock lock(&mutex_);
    return Meet(deadline);
  }

 private:
  bool Meet(Clock::time_point deadline) REQUIRES(mutex_) {
    const int64_t meeting = meeting_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++meeting_;
      all_here_.NotifyAll();
      return true;
    }
    while (meeting_ == meeting) {
      if (!all_here_.WaitUntil(&mutex_, deadline)) return meeting_ != meeting;
    }
    return true;
  }

  const int size_;
  Mutex mutex_;
  CondVar all_here_;
  std::vector<const void*> items_ GUARDED_BY(mutex_);  // by rank
  int arrived_ GUARDED_BY(mutex_) = 0;
  int64_t meeting_ GUARDED_BY(mutex_) = 0;  // how many have taken place
};

namespace {

// A collective that waits longer has lost a rank; a test should fail then.
constexpr auto kLostRank = std::chrono::minutes(5);

class ThreadCommunicator final : public HostCommunicator {
 public:
  ThreadCommunicator(ThreadGroup* group, int rank, const Options& options,
                     std::unique_ptr<DeviceBuffer> parts)
      : HostCommunicator(options, std::move(parts)),
        group_(group),
        rank_(rank) {}

  static absl::StatusOr<std::unique_ptr<Communicator>> Create(
      ThreadGroup* group, int rank, const Options& options) {
    RING_ASSIGN_OR_RETURN(auto parts, AllocateParts(options, group->size()));
    return std::make_unique<ThreadCommunicator>(group, rank, options,
                                                std::move(parts));
  }

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

 private:
  using Sends = absl::Span<const SendBlock>;

  void ExchangeWithPeers(Sends sends,
                         absl::Span<const RecvBlock> recvs) override {
    const auto deadline = ThreadGroup::Clock::now() + kLostRank;
    RING_CHECK(group_->Show(rank_, &sends, deadline))
        << "rank " << rank_ << " waited for its peers in vain";
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != rank_) CopyFrom(peer, recvs);
    }
    RING_CHECK(group_->Leave(deadline))
        << "rank " << rank_ << " waited for its peers in vain";
  }

  // Copies the blocks that `peer` sends here, in order.
  void CopyFrom(int peer, absl::Span<const RecvBlock> recvs) {
    size_t next = 0;
    for (const SendBlock& send :
         *static_cast<const Sends*>(group_->Shown(peer))) {
      if (send.to != rank_) continue;
      while (next < recvs.size() && recvs[next].from != peer) ++next;
      RING_CHECK_LT(next, recvs.size())
          << "rank " << peer << " sends more than rank " << rank_ << " expects";
      RING_CHECK_EQ(recvs[next].bytes, send.bytes);
      std::memcpy(recvs[next].data, send.data, send.bytes);
      ++next;
    }
    while (next < recvs.size() && recvs[next].from != peer) ++next;
    RING_CHECK_EQ(next, recvs.size())
        << "rank " << peer << " sends less than rank " << rank_ << " expects";
  }

  ThreadGroup* const group_;
  const int rank_;
};

class ThreadControlChannel final : public ControlChannel {
 public:
  ThreadControlChannel(ThreadGroup* group, int rank, Progress* progress,
                       std::chrono::milliseconds deadline)
      : group_(group), rank_(rank), progress_(progress), deadline_(deadline) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  absl::Status Broadcast(std::string* message) override {
    std::vector<std::string> all;
    RING_RETURN_IF_ERROR(Collect(*message, 1, &all));
    if (rank_ != 0) *message = std::move(all[0]);
    return absl::OkStatus();
  }

  absl::Status Gather(absl::string_view message,
                      std::vector<std::string>* all) override {
    return Collect(message, rank_ == 0 ? size() : 0, all);
  }

  absl::Status AllGather(absl::string_view message,
                         std::vector<std::string>* all) override {
    return Collect(message, size(), all);
  }

 private:
  // Shows `message`, copies those of the first `count` ranks.
  absl::Status Collect(absl::string_view message, int count,
                       std::vector<std::string>* all) {
    CollectiveScope scope(progress_);
    const auto deadline = ThreadGroup::Clock::now() + deadline_;
    all->clear();
    if (!group_->Show(rank_, &message, deadline)) return Late();
    for (int r = 0; r < count; ++r) {
      all->emplace_back(
          *static_cast<const absl::string_view*>(group_->Shown(r)));
    }
    return group_->Leave(deadline) ? absl::OkStatus() : Late();
  }

  absl::Status Late() const {
    return absl::DeadlineExceededError(
        absl::StrCat("rank ", rank_, " waited ", deadline_.count(),
                     " ms for the other ranks' control messages"));
  }

  ThreadGroup* const group_;
  const int rank_;
  Progress* const progress_;
  const std::chrono::milliseconds deadline_;
};

}  // namespace

ThreadWorld::ThreadWorld(int tp, int dp)
    : tp_(tp),
      control_(std::make_unique<ThreadGroup>(tp * dp)),
      world_(std::make_unique<ThreadGroup>(tp * dp)) {
  for (int d = 0; d < dp; ++d) {
    tp_groups_.push_back(std::make_unique<ThreadGroup>(tp));
  }
  for (int t = 0; t < tp; ++t) {
    dp_groups_.push_back(std::make_unique<ThreadGroup>(dp));
  }
}

ThreadWorld::~ThreadWorld() = default;

std::unique_ptr<ControlChannel> ThreadWorld::Control(
    int rank, Progress* progress, std::chrono::milliseconds deadline) {
  return std::make_unique<ThreadControlChannel>(control_.get(), rank, progress,
                                                deadline);
}

absl::StatusOr<MeshCommunicators> ThreadWorld::Communicators(
    const Mesh& mesh, const HostCommunicator::Options& options) {
  RING_CHECK_EQ(mesh.tp(), tp_);
  RING_CHECK_EQ(mesh.world_size(), world_->size());
  MeshCommunicators axes;
  RING_ASSIGN_OR_RETURN(axes.world, ThreadCommunicator::Create(
                                        world_.get(), mesh.rank(), options));
  RING_ASSIGN_OR_RETURN(
      axes.tp, ThreadCommunicator::Create(tp_groups_[mesh.dp_rank()].get(),
                                          mesh.tp_rank(), options));
  RING_ASSIGN_OR_RETURN(
      axes.dp, ThreadCommunicator::Create(dp_groups_[mesh.tp_rank()].get(),
                                          mesh.dp_rank(), options));
  return axes;
}

}  // namespace ring
