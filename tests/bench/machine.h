// What this machine can do at best, measured in the same run as the kernels
// that are compared with it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace ring {

class ThreadPool;

// Bytes per second that the pool's threads can read from memory: pure loads
// over 256 MiB, the best of several passes. Remembered per number of threads.
double ReadBandwidth(ThreadPool* pool);

// Bytes per second, read and written, of a pass that changes 256 MiB in place:
// what a state that is updated once a token can reach at best.
double UpdateBandwidth(ThreadPool* pool);

// Runs a benchmark's loop and returns the fastest iteration's seconds: on a
// shared machine the least disturbed one.
template <typename State, typename Body>
double BestSeconds(State& state, const Body& body) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    body();
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best = std::min(best, elapsed.count());
    state.SetIterationTime(elapsed.count());
  }
  return best;
}

}  // namespace ring
