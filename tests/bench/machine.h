// What this machine can do at best, measured in the same run as the kernels
// that are compared with it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>

namespace ring {

class ThreadPool;

// Bytes per second that the pool's threads can read from memory: pure loads
// over 256 MiB, the best of several passes. Remembered per number of threads.
double ReadBandwidth(ThreadPool* pool);

// Bytes per second, read and written, of a pass that changes 256 MiB in place:
// what a state that is updated once a token can reach at best.
double UpdateBandwidth(ThreadPool* pool);

// The fastest iteration of a benchmark: on a shared machine the least disturbed
// one.
struct BestTimes {
  double wall_s = 1e30;
  double cpu_s = 1e30;  // of all threads of the process
};

// Runs a benchmark's loop.
template <typename State, typename Body>
BestTimes MeasureBest(State& state, const Body& body) {
  using Clock = std::chrono::steady_clock;
  BestTimes best;
  for ([[maybe_unused]] auto _ : state) {
    const Clock::time_point start = Clock::now();
    const std::clock_t cpu_start = std::clock();
    body();
    const double cpu_s =
        static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best.wall_s = std::min(best.wall_s, elapsed.count());
    best.cpu_s = std::min(best.cpu_s, cpu_s);
    state.SetIterationTime(elapsed.count());
  }
  return best;
}

// Counters of a compute-bound benchmark: per second, and per second of one
// processor, which other programs on the machine disturb less.
template <typename State>
void ReportFlops(State& state, double flops, const BestTimes& best) {
  state.counters["GFLOP/s"] = flops / best.wall_s / 1e9;
  state.counters["GFLOP/cpu_s"] = flops / best.cpu_s / 1e9;
}

}  // namespace ring
