#include "worker/model/load_tasks.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/base/log.h"
#include "kernels/base/mutex.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

// What the threads share. A task is megabytes of work, so one lock per task
// costs nothing.
class TaskQueue {
 public:
  TaskQueue(int64_t count, int threads)
      : count_(count), running_threads_(threads) {}

  // The next task, or -1 when none is left or one has failed.
  int64_t Take() EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    return error_.ok() && next_ < count_ ? next_++ : -1;
  }

  void Finish(const absl::StatusOr<int64_t>& bytes) EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    if (bytes.ok()) {
      done_bytes_ += *bytes;
    } else if (error_.ok()) {
      error_ = bytes.status();
    }
  }

  void EndThread() EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    if (--running_threads_ == 0) all_ended_.NotifyAll();
  }

  // True when all threads have ended, false at the deadline.
  bool WaitForEnd(Clock::time_point deadline, int64_t* done_bytes)
      EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    while (running_threads_ > 0 && all_ended_.WaitUntil(&mutex_, deadline)) {
    }
    *done_bytes = done_bytes_;
    return running_threads_ == 0;
  }

  absl::Status status() EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    return error_;
  }

 private:
  const int64_t count_;
  Mutex mutex_;
  CondVar all_ended_;
  int64_t next_ GUARDED_BY(mutex_) = 0;
  int64_t done_bytes_ GUARDED_BY(mutex_) = 0;
  int running_threads_ GUARDED_BY(mutex_);
  absl::Status error_ GUARDED_BY(mutex_);
};

}  // namespace

void LogLoad(absl::string_view what, int64_t done_bytes, int64_t total_bytes,
             Clock::time_point start) {
  LogInfo(what, "bytes", done_bytes, "of", total_bytes, "seconds",
          std::chrono::duration<double>(Clock::now() - start).count());
}

absl::Status RunLoadTasks(
    const std::string& what, int64_t count, int64_t total_bytes,
    const LoadOptions& options,
    absl::FunctionRef<absl::StatusOr<int64_t>(int64_t)> task) {
  const int used_threads = static_cast<int>(
      std::clamp<int64_t>(count, 1, std::max(options.threads, 1)));
  TaskQueue queue(count, used_threads);
  std::vector<std::thread> workers;
  for (int i = 0; i < used_threads; ++i) {
    workers.emplace_back([&queue, &options, task] {
      for (int64_t i = queue.Take(); i >= 0; i = queue.Take()) {
        queue.Finish(task(i));
        if (options.progress != nullptr) options.progress->Tick();
      }
      queue.EndThread();
    });
  }
  const Clock::time_point start = Clock::now();
  int64_t done_bytes = 0;
  for (int tick = 1;
       !queue.WaitForEnd(start + tick * options.log_interval, &done_bytes);
       ++tick) {
    LogLoad(what, done_bytes, total_bytes, start);
  }
  for (std::thread& worker : workers) worker.join();
  return queue.status();
}

}  // namespace ring
