#include "worker/watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "kernels/base/mutex.h"
#include "worker/incident.h"

namespace ring {

class Watchdog::Impl {
 public:
  Impl(SideLink* link, const Progress* progress, const Options& options)
      : link_(link),
        progress_(progress),
        options_(options),
        judge_(link->rank(), options.judge),
        thread_([this] { Run(); }) {}

  ~Impl() {
    if (thread_.joinable()) EndThread();
  }

  [[noreturn]] void Fail(const std::string& what) {
    {
      MutexLock lock(&mutex_);
      if (!running_) {
        End({FailureNotice::Kind::kReported, link_->rank(),
             ProgressSnapshot::Of(*progress_), what});
      }
      if (own_failure_.empty()) own_failure_ = what.empty() ? "failed" : what;
    }
    link_->Interrupt();
    // The watchdog thread ends the process.
    while (true) pause();
  }

  void Stop(std::chrono::milliseconds patience) {
    leaving_ = true;
    link_->SayGoodbye();
    link_->Interrupt();
    const auto deadline = std::chrono::steady_clock::now() + patience;
    {
      MutexLock lock(&mutex_);
      while (!all_left_ && all_left_changed_.WaitUntil(&mutex_, deadline)) {
      }
    }
    EndThread();
  }

 private:
  void EndThread() {
    ended_ = true;
    link_->Interrupt();
    thread_.join();
    MutexLock lock(&mutex_);
    running_ = false;
  }

  void Run() {
    pthread_setname_np(pthread_self(), "watchdog");
    while (!ended_) {
      link_->Poll(options_.interval);
      if (leaving_) {
        NoteWhoLeft();
        continue;
      }
      const FailureNotice notice = Look();
      if (notice.kind != FailureNotice::Kind::kNone && !leaving_) End(notice);
    }
  }

  FailureNotice Look() {
    FailureJudge::Evidence evidence;
    {
      MutexLock lock(&mutex_);
      evidence.own_failure = own_failure_;
    }
    evidence.told = link_->Notice();
    evidence.own = ProgressSnapshot::Of(*progress_);
    evidence.peers = link_->Peers();
    return judge_.Judge(std::chrono::steady_clock::now(), evidence);
  }

  [[noreturn]] void End(const FailureNotice& notice) {
    WriteIncident(IncidentLine(notice, HostOf(notice.rank).name, link_->rank()),
                  options_.incident_file);
    KillIfSilentHere(notice);
    // A follower can tell the leader nothing that cannot wait, but of itself. A
    // leader that was silent and runs again would else blame a follower, for
    // its closed link.
    const bool own = notice.kind == FailureNotice::Kind::kReported &&
                     notice.rank == link_->rank();
    const bool urgent = own || link_->rank() == 0;
    link_->Announce(notice, urgent ? options_.announce_patience
                                   : std::chrono::milliseconds(0));
    _exit(kIncidentExitCode);
  }

  const HostIdentity& HostOf(int rank) const {
    const auto& hosts = link_->hosts();
    const bool known = rank >= 0 && rank < static_cast<int>(hosts.size());
    return hosts[known ? rank : link_->rank()];
  }

  // Its link is open, so the process exists and its id is its own.
  void KillIfSilentHere(const FailureNotice& notice) const {
    if (notice.kind != FailureNotice::Kind::kSilent) return;
    const HostIdentity& self = HostOf(link_->rank());
    const HostIdentity& silent = HostOf(notice.rank);
    if (silent.boot == self.boot &&
        silent.pid_namespace == self.pid_namespace && silent.pid != self.pid) {
      kill(static_cast<pid_t>(silent.pid), SIGKILL);
    }
  }

  void NoteWhoLeft() {
    const std::vector<PeerState> peers = link_->Peers();
    MutexLock lock(&mutex_);
    all_left_ = std::none_of(
        peers.begin(), peers.end(),
        [](const PeerState& p) { return p.link == PeerState::Link::kOpen; });
    if (all_left_) all_left_changed_.NotifyAll();
  }

  SideLink* const link_;
  const Progress* const progress_;
  const Options options_;
  FailureJudge judge_;  // watchdog thread only
  std::atomic<bool> leaving_{false};
  std::atomic<bool> ended_{false};

  Mutex mutex_;
  CondVar all_left_changed_;
  std::string own_failure_ GUARDED_BY(mutex_);
  bool all_left_ GUARDED_BY(mutex_) = false;
  bool running_ GUARDED_BY(mutex_) = true;

  std::thread thread_;  // last: it uses all of the above
};

Watchdog::Watchdog(SideLink* link, const Progress* progress,
                   const Options& options)
    : impl_(std::make_unique<Impl>(link, progress, options)) {}

Watchdog::~Watchdog() = default;

void Watchdog::Fail(const std::string& what) { impl_->Fail(what); }

void Watchdog::Stop(std::chrono::milliseconds patience) {
  impl_->Stop(patience);
}

}  // namespace ring
