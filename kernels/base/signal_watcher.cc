#include "kernels/base/signal_watcher.h"

#include <pthread.h>

#include <utility>

namespace ring {
namespace {

// Ends the watcher's thread; nobody else sends it.
constexpr int kStopSignal = SIGUSR2;

sigset_t WatchedSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, kStopSignal);
  return set;
}

}  // namespace

SignalWatcher::SignalWatcher(OnSignal on_signal)
    : on_signal_(std::move(on_signal)) {
  const sigset_t set = WatchedSignals();
  pthread_sigmask(SIG_BLOCK, &set, &mask_before_);
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  pthread_kill(thread_.native_handle(), kStopSignal);
  thread_.join();
  pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

void SignalWatcher::Watch() {
  const sigset_t set = WatchedSignals();
  for (int count = 1;; ++count) {
    int signal = 0;
    if (sigwait(&set, &signal) != 0 || signal == kStopSignal) return;
    on_signal_(signal, count);
  }
}

}  // namespace ring
