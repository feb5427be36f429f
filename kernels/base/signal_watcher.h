// SIGTERM and SIGINT as calls on an ordinary thread.
#pragma once

#include <signal.h>

#include <functional>
#include <thread>

namespace ring {

// Blocks both signals for this thread and all that it starts later, so create
// it first; what was blocked before is so again in the end. Confined to the
// main thread.
class SignalWatcher {
 public:
  // SIGTERM or SIGINT, and how many there have been: 1 for the first. Called
  // on the watcher's own thread.
  using OnSignal = std::function<void(int signal, int count)>;
  explicit SignalWatcher(OnSignal on_signal);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Watch();

  sigset_t mask_before_;
  const OnSignal on_signal_;
  std::thread thread_;
};

}  // namespace ring
