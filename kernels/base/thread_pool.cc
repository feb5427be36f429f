#include "kernels/base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/mutex.h"

namespace ring {
namespace {

// How long a worker watches for the next loop before it blocks. Loops of one
// model step follow each other within a few microseconds.
constexpr int kSpinIterations = 2000;

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::Shared {
  // The running loop. Written by the caller before `generation` moves on,
  // read by workers after they have seen it move.
  absl::FunctionRef<void(int)>* body = nullptr;

  std::atomic<uint64_t> generation{0};
  std::atomic<int> running{0};
  std::atomic<bool> stop{false};
  bool may_spin = true;

  Mutex mutex;
  CondVar wake;
  int sleepers GUARDED_BY(mutex) = 0;
  CondVar finished;

  std::vector<std::thread> workers;

  void WorkerLoop(int thread) {
    uint64_t seen = 0;
    for (;;) {
      WaitForGeneration(seen);
      if (stop.load(std::memory_order_acquire)) return;
      ++seen;
      (*body)(thread);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        MutexLock lock(&mutex);
        finished.NotifyOne();
      }
    }
  }

  void WaitForGeneration(uint64_t seen) {
    if (may_spin) {
      for (int i = 0; i < kSpinIterations; ++i) {
        if (generation.load(std::memory_order_acquire) != seen) return;
        CpuRelax();
      }
    }
    MutexLock lock(&mutex);
    ++sleepers;
    while (generation.load(std::memory_order_acquire) == seen) {
      wake.Wait(&mutex);
    }
    --sleepers;
  }

  void Publish() {
    MutexLock lock(&mutex);
    generation.fetch_add(1, std::memory_order_acq_rel);
    if (sleepers > 0) wake.NotifyAll();
  }
};

ThreadPool::ThreadPool(int threads) : shared_(std::make_unique<Shared>()) {
  RING_CHECK_GE(threads, 1);
  // Spinning only helps while every thread has a core of its own.
  shared_->may_spin =
      threads <= static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 1; i < threads; ++i) {
    shared_->workers.emplace_back([this, i] { shared_->WorkerLoop(i); });
  }
}

ThreadPool::~ThreadPool() {
  shared_->stop.store(true, std::memory_order_release);
  shared_->Publish();
  for (std::thread& worker : shared_->workers) worker.join();
}

int ThreadPool::threads() const {
  return static_cast<int>(shared_->workers.size()) + 1;
}

void ThreadPool::RunOnAll(absl::FunctionRef<void(int thread)> body) {
  if (shared_->workers.empty()) {
    body(0);
    return;
  }
  shared_->body = &body;
  shared_->running.store(static_cast<int>(shared_->workers.size()),
                         std::memory_order_release);
  shared_->Publish();
  body(0);
  for (int i = 0; shared_->may_spin && i < kSpinIterations; ++i) {
    if (shared_->running.load(std::memory_order_acquire) == 0) break;
    CpuRelax();
  }
  MutexLock lock(&shared_->mutex);
  while (shared_->running.load(std::memory_order_acquire) != 0) {
    shared_->finished.Wait(&shared_->mutex);
  }
}

void ThreadPool::ParallelFor(
    int64_t count, int64_t grain,
    absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  RING_CHECK_GE(grain, 1);
  if (count <= 0) return;
  if (shared_->workers.empty() || count <= grain) {
    body(0, count);
    return;
  }
  // A few ranges a thread balance uneven work without many hand-outs.
  const int64_t ranges = (count + grain - 1) / grain;
  const int64_t wanted = static_cast<int64_t>(threads()) * 4;
  const int64_t step =
      grain * std::max<int64_t>(1, (ranges + wanted - 1) / wanted);
  std::atomic<int64_t> next{0};
  RunOnAll([&](int) {
    for (;;) {
      const int64_t begin = next.fetch_add(step, std::memory_order_relaxed);
      if (begin >= count) return;
      body(begin, std::min(begin + step, count));
    }
  });
}

}  // namespace ring
