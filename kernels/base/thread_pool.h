// A fixed team of threads that runs one parallel loop at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace ring {

// Splits loops over `threads` threads, the caller being one of them. Workers
// spin for a few microseconds between loops of one step and then block, so an
// idle pool uses no CPU. Confined to the thread that created it; the loop
// bodies run on all threads. With one thread everything runs inline.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls body(begin, end) for consecutive ranges that cover [0, count), each
  // a multiple of `grain` long but the last. Ranges are handed out on demand,
  // so uneven work balances; which thread runs which range is not defined and
  // must not influence results. Returns when all are done. Not re-entrant.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body);

  // Calls body(thread) once on each thread, 0 <= thread < threads().
  void RunOnAll(absl::FunctionRef<void(int thread)> body);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace ring
