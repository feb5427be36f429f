#include "parallel/side_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "parallel/side_link_bootstrap.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

enum class MessageType : uint32_t {
  kHeartbeat = 1,  // ProgressSnapshot
  kWake = 2,       // empty
  kGoodbye = 3,    // empty
  kFailure = 4,    // FailurePayload, then the text
};

struct MessageHeader {
  MessageType type;
  uint32_t bytes;  // of the payload
};

struct FailurePayload {
  FailureNotice::Kind kind;
  int32_t rank;
  ProgressSnapshot progress;
};

// Longer ones are cut when sent, and end the link when received.
constexpr size_t kMaxPayload = 4096;

template <typename T>
absl::string_view BytesOf(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return absl::string_view(reinterpret_cast<const char*>(&value),
                           sizeof(value));
}

std::string Message(MessageType type, absl::string_view payload = {}) {
  const MessageHeader header{type, static_cast<uint32_t>(payload.size())};
  return absl::StrCat(BytesOf(header), payload);
}

std::string FailureMessage(const FailureNotice& notice) {
  const FailurePayload fixed{notice.kind, notice.rank, notice.progress};
  const absl::string_view text(notice.what);
  return Message(MessageType::kFailure,
                 absl::StrCat(BytesOf(fixed),
                              text.substr(0, kMaxPayload - sizeof(fixed))));
}

struct Link {
  Fd fd;
  PeerState peer;
  bool readable = true;  // false once its end has been read
  std::string in;        // received, not a whole message yet
  std::string out;       // not sent yet
};

class SideLinkImpl final : public SideLink {
 public:
  SideLinkImpl(int rank, const Progress* progress, const Options& options,
               SideLinkSockets sockets)
      : rank_(rank),
        progress_(progress),
        options_(options),
        hosts_(std::move(sockets.hosts)),
        interrupt_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    RING_CHECK_GE(interrupt_.get(), 0) << std::strerror(errno);
    const Clock::time_point now = Clock::now();
    int peer = rank == 0 ? 1 : 0;
    for (Fd& fd : sockets.links) {
      Link& link = links_.emplace_back();
      link.fd = std::move(fd);
      link.peer.rank = peer++;
      link.peer.last_heard = now;
    }
  }

  int rank() const override { return rank_; }
  const std::vector<HostIdentity>& hosts() const override { return hosts_; }

  absl::Status Park() override {
    if (hosts_.size() == 1) return absl::OkStatus();
    RING_CHECK_NE(rank_, 0) << "the leader does not park";
    MutexLock lock(&mutex_);
    ++parks_;
    while (wakes_ < parks_) {
      if (links_[0].peer.link != PeerState::Link::kOpen) {
        return absl::CancelledError("the side link to the leader has ended");
      }
      news_.Wait(&mutex_);
    }
    return absl::OkStatus();
  }

  void Wake() override {
    RING_CHECK_EQ(rank_, 0) << "only the leader wakes";
    SendToAll(Message(MessageType::kWake));
  }

  void SayGoodbye() override {
    {
      MutexLock lock(&mutex_);
      leaving_ = true;
    }
    SendToAll(Message(MessageType::kGoodbye));
  }

  void Poll(milliseconds timeout) override {
    SendHeartbeatIfDue();
    const auto until_heartbeat =
        std::chrono::ceil<milliseconds>(next_heartbeat_ - Clock::now());
    WaitForNews(std::min(timeout, until_heartbeat));
    MutexLock lock(&mutex_);
    for (Link& link : links_) {
      if (link.readable) Read(&link);
      if (!link.out.empty()) Flush(&link);
    }
  }

  std::vector<PeerState> Peers() const override {
    MutexLock lock(&mutex_);
    std::vector<PeerState> peers;
    for (const Link& link : links_) peers.push_back(link.peer);
    return peers;
  }

  FailureNotice Notice() const override {
    MutexLock lock(&mutex_);
    return notice_;
  }

  void Announce(const FailureNotice& notice, milliseconds patience) override {
    SendToAll(FailureMessage(notice));
    const Clock::time_point deadline = Clock::now() + patience;
    // Reading on matters: a socket closed with unread bytes is reset, and the
    // reset can overtake the notice.
    while (!Taken() && Clock::now() < deadline) {
      Poll(std::chrono::ceil<milliseconds>(deadline - Clock::now()));
    }
  }

  void Interrupt() override {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n =
        write(interrupt_.get(), &one, sizeof(one));
  }

 private:
  void SendHeartbeatIfDue() {
    const Clock::time_point now = Clock::now();
    if (now < next_heartbeat_) return;
    next_heartbeat_ = now + options_.heartbeat;
    const ProgressSnapshot snapshot = ProgressSnapshot::Of(*progress_);
    const std::string message =
        Message(MessageType::kHeartbeat, BytesOf(snapshot));
    MutexLock lock(&mutex_);
    if (leaving_) return;
    for (Link& link : links_) {
      // A peer that does not read gets no more of them, which bounds `out`.
      if (link.out.empty()) Send(&link, message);
    }
  }

  void WaitForNews(milliseconds timeout) {
    std::vector<pollfd> entries = {{interrupt_.get(), POLLIN, 0}};
    {
      MutexLock lock(&mutex_);
      for (const Link& link : links_) {
        if (!link.readable) continue;
        const short events = link.out.empty() ? POLLIN : POLLIN | POLLOUT;
        entries.push_back({link.fd.get(), events, 0});
      }
    }
    poll(entries.data(), entries.size(),
         std::max(0, static_cast<int>(timeout.count())));
    if (entries[0].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t n =
          read(interrupt_.get(), &count, sizeof(count));
    }
  }

  // Whether the announced notice has arrived: followers end on it, the leader
  // sends it back first.
  bool Taken() const {
    MutexLock lock(&mutex_);
    if (rank_ != 0 && notice_.kind != FailureNotice::Kind::kNone) return true;
    return std::none_of(links_.begin(), links_.end(),
                        [](const Link& link) { return link.readable; });
  }

  void SendToAll(const std::string& message) {
    bool unsent = false;
    {
      MutexLock lock(&mutex_);
      for (Link& link : links_) {
        Send(&link, message);
        unsent |= !link.out.empty();
      }
    }
    // The polling thread has to watch for room now.
    if (unsent) Interrupt();
  }

  void Send(Link* link, const std::string& message) REQUIRES(mutex_) {
    if (!link->readable) return;
    link->out.append(message);
    Flush(link);
  }

  // A failure to send says nothing that reading will not say too.
  void Flush(Link* link) REQUIRES(mutex_) {
    const ssize_t n = send(link->fd.get(), link->out.data(), link->out.size(),
                           MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) link->out.erase(0, n);
    if (n < 0 && errno != EAGAIN && errno != EINTR) link->out.clear();
  }

  void Read(Link* link) REQUIRES(mutex_) {
    char bytes[4096];
    while (true) {
      const ssize_t n =
          recv(link->fd.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
      if (n > 0) {
        link->in.append(bytes, n);
        if (!HandleMessages(link)) return End(link);
        continue;
      }
      if (n < 0 && errno == EINTR) continue;
      if (n == 0 || errno != EAGAIN) End(link);
      return;
    }
  }

  void End(Link* link) REQUIRES(mutex_) {
    link->readable = false;
    link->out.clear();
    if (link->peer.link == PeerState::Link::kOpen) {
      link->peer.link = PeerState::Link::kClosed;
    }
    news_.NotifyAll();
  }

  // Handles the whole messages in `in`. False: these are none of ours.
  bool HandleMessages(Link* link) REQUIRES(mutex_) {
    link->peer.last_heard = Clock::now();
    absl::string_view rest(link->in);
    MessageHeader header;
    while (rest.size() >= sizeof(header)) {
      std::memcpy(&header, rest.data(), sizeof(header));
      if (header.bytes > kMaxPayload) return false;
      if (rest.size() < sizeof(header) + header.bytes) break;
      rest.remove_prefix(sizeof(header));
      if (!Handle(link, header.type, rest.substr(0, header.bytes))) {
        return false;
      }
      rest.remove_prefix(header.bytes);
    }
    link->in.erase(0, link->in.size() - rest.size());
    return true;
  }

  bool Handle(Link* link, MessageType type, absl::string_view payload)
      REQUIRES(mutex_) {
    switch (type) {
      case MessageType::kHeartbeat:
        if (payload.size() != sizeof(ProgressSnapshot)) return false;
        std::memcpy(&link->peer.progress, payload.data(), payload.size());
        return true;
      case MessageType::kWake:
        ++wakes_;
        news_.NotifyAll();
        return true;
      case MessageType::kGoodbye:
        link->peer.link = PeerState::Link::kGoodbye;
        news_.NotifyAll();
        return true;
      case MessageType::kFailure:
        return HandleFailure(payload);
    }
    return false;
  }

  bool HandleFailure(absl::string_view payload) REQUIRES(mutex_) {
    FailurePayload fixed;
    if (payload.size() < sizeof(fixed)) return false;
    std::memcpy(&fixed, payload.data(), sizeof(fixed));
    if (notice_.kind != FailureNotice::Kind::kNone) return true;
    notice_ = {fixed.kind, fixed.rank, fixed.progress,
               std::string(payload.substr(sizeof(fixed)))};
    return true;
  }

  const int rank_;
  const Progress* const progress_;
  const Options options_;
  const std::vector<HostIdentity> hosts_;
  const Fd interrupt_;
  Clock::time_point next_heartbeat_{};  // watchdog thread only

  mutable Mutex mutex_;
  CondVar news_;  // a wake, or the end of a link
  std::vector<Link> links_ GUARDED_BY(mutex_);
  int64_t parks_ GUARDED_BY(mutex_) = 0;
  int64_t wakes_ GUARDED_BY(mutex_) = 0;
  bool leaving_ GUARDED_BY(mutex_) = false;
  FailureNotice notice_ GUARDED_BY(mutex_);
};

}  // namespace

ProgressSnapshot ProgressSnapshot::Of(const Progress& progress) {
  return {progress.phase.load(std::memory_order_relaxed),
          progress.layer.load(std::memory_order_relaxed),
          progress.rows.load(std::memory_order_relaxed),
          progress.step.load(std::memory_order_relaxed),
          progress.collective.load(std::memory_order_relaxed),
          progress.ticks.load(std::memory_order_relaxed)};
}

absl::StatusOr<std::unique_ptr<SideLink>> SideLink::Create(
    ControlChannel* control, const Progress* progress, const Options& options) {
  RING_ASSIGN_OR_RETURN(SideLinkSockets sockets,
                        ConnectSideLinks(control, options));
  return std::make_unique<SideLinkImpl>(control->rank(), progress, options,
                                        std::move(sockets));
}

}  // namespace ring
