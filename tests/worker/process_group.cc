#include "tests/worker/process_group.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

// A star of stream sockets made before the fork; blocking.
class ForkedChannel final : public ControlChannel {
 public:
  // sockets[r] leads to rank r; a follower uses sockets[0] alone.
  ForkedChannel(int rank, int size, std::vector<int> sockets)
      : rank_(rank), size_(size), sockets_(std::move(sockets)) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::Status Broadcast(std::string* message) override {
    if (rank_ != 0) return Receive(0, message);
    for (int r = 1; r < size_; ++r) RING_RETURN_IF_ERROR(Send(r, *message));
    return absl::OkStatus();
  }

  absl::Status Gather(absl::string_view message,
                      std::vector<std::string>* all) override {
    all->clear();
    if (rank_ != 0) return Send(0, std::string(message));
    all->assign(size_, std::string(message));
    for (int r = 1; r < size_; ++r) {
      RING_RETURN_IF_ERROR(Receive(r, &(*all)[r]));
    }
    return absl::OkStatus();
  }

  absl::Status AllGather(absl::string_view message,
                         std::vector<std::string>* all) override {
    RING_RETURN_IF_ERROR(Gather(message, all));
    all->resize(size_);
    for (std::string& one : *all) RING_RETURN_IF_ERROR(Broadcast(&one));
    return absl::OkStatus();
  }

 private:
  absl::Status Send(int to, const std::string& message) {
    const uint64_t bytes = message.size();
    const bool sent = send(sockets_[to], &bytes, sizeof(bytes), MSG_NOSIGNAL) ==
                          ssize_t{sizeof(bytes)} &&
                      send(sockets_[to], message.data(), bytes, MSG_NOSIGNAL) ==
                          static_cast<ssize_t>(bytes);
    return sent ? absl::OkStatus() : absl::UnavailableError("peer is gone");
  }

  absl::Status Receive(int from, std::string* message) {
    uint64_t bytes = 0;
    if (recv(sockets_[from], &bytes, sizeof(bytes), MSG_WAITALL) !=
        ssize_t{sizeof(bytes)}) {
      return absl::UnavailableError("peer is gone");
    }
    message->resize(bytes);
    const bool received = recv(sockets_[from], message->data(), bytes,
                               MSG_WAITALL) == static_cast<ssize_t>(bytes);
    return received ? absl::OkStatus() : absl::UnavailableError("peer is gone");
  }

  const int rank_;
  const int size_;
  const std::vector<int> sockets_;
};

RankEnd ToRankEnd(int status) {
  RankEnd end;
  end.ended = true;
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  return end;
}

// Collects the children until all have ended or SIGALRM tells of the deadline.
void Reap(const std::vector<pid_t>& pids, std::chrono::seconds deadline,
          std::vector<RankEnd>* ends) {
  struct sigaction interrupt {};
  interrupt.sa_handler = [](int) {};  // only to interrupt waitpid
  struct sigaction before {};
  sigaction(SIGALRM, &interrupt, &before);
  alarm(static_cast<unsigned>(deadline.count()));
  for (size_t r = 0; r < pids.size(); ++r) {
    int status = 0;
    if (waitpid(pids[r], &status, 0) < 0) break;
    (*ends)[r] = ToRankEnd(status);
  }
  alarm(0);
  sigaction(SIGALRM, &before, nullptr);
}

}  // namespace

std::vector<RankEnd> RunProcesses(
    int ranks, const std::function<int(ControlChannel* control)>& body,
    std::chrono::seconds deadline) {
  std::vector<int> leader_ends(ranks, -1);
  std::vector<int> follower_ends(ranks, -1);
  for (int r = 1; r < ranks; ++r) {
    int pair[2];
    RING_CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    leader_ends[r] = pair[0];
    follower_ends[r] = pair[1];
  }
  std::vector<pid_t> pids;
  for (int r = 0; r < ranks; ++r) {
    const pid_t pid = fork();
    RING_CHECK_GE(pid, 0);
    if (pid == 0) {
      ForkedChannel channel(
          r, ranks, r == 0 ? leader_ends : std::vector<int>{follower_ends[r]});
      _exit(body(&channel));
    }
    pids.push_back(pid);
  }
  for (int r = 1; r < ranks; ++r) {
    close(leader_ends[r]);
    close(follower_ends[r]);
  }
  std::vector<RankEnd> ends(ranks);
  Reap(pids, deadline, &ends);
  for (int r = 0; r < ranks; ++r) {
    if (ends[r].ended) continue;
    kill(pids[r], SIGKILL);
    waitpid(pids[r], nullptr, 0);
  }
  return ends;
}

}  // namespace ring
