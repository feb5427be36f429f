// std::mutex and std::condition_variable with clang's capability attributes,
// so that -Wthread-safety checks GUARDED_BY and TSan sees the locks.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

// Some releases of abseil define the short names themselves, with the same
// meaning.
#include "absl/base/thread_annotations.h"
#ifndef GUARDED_BY
#define GUARDED_BY(mutex) ABSL_GUARDED_BY(mutex)
#endif
#ifndef REQUIRES
#define REQUIRES(...) ABSL_EXCLUSIVE_LOCKS_REQUIRED(__VA_ARGS__)
#endif
#ifndef EXCLUDES
#define EXCLUDES(...) ABSL_LOCKS_EXCLUDED(__VA_ARGS__)
#endif
#if defined(__clang__)
#define RING_TSA_(x) __attribute__((x))
#else
#define RING_TSA_(x)
#endif

namespace ring {

class RING_TSA_(capability("mutex")) Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() RING_TSA_(acquire_capability()) { mutex_.lock(); }
  void Unlock() RING_TSA_(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Holds a Mutex for a scope.
class RING_TSA_(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) RING_TSA_(acquire_capability(mutex))
      : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() RING_TSA_(release_capability()) { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

// Waits may return early: test the condition in a loop.
class CondVar {
 public:
  void Wait(Mutex* mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False when `deadline` has passed.
  bool WaitUntil(Mutex* mutex, std::chrono::steady_clock::time_point deadline)
      REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    const bool in_time =
        condition_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return in_time;
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace ring
