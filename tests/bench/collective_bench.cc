// What waiting for other ranks costs. Run it under mpirun, also with more
// ranks than cores:
//   mpirun --oversubscribe -np 4 collective_bench
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "kernels/cpu_backend.h"
#include "parallel/mpi_runtime.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

double Microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void MeasureAllGather(Communicator* world, int64_t bytes) {
  constexpr int kBlocks = 20;
  constexpr int kCalls = 100;
  std::vector<char> own(bytes);
  std::vector<char> all(bytes * world->size());
  std::vector<double> us_per_call;
  for (int block = 0; block < kBlocks; ++block) {
    const auto start = Clock::now();
    for (int i = 0; i < kCalls; ++i) {
      world->AllGather(own.data(), all.data(), bytes);
    }
    us_per_call.push_back(Microseconds(Clock::now() - start) / kCalls);
  }
  std::sort(us_per_call.begin(), us_per_call.end());
  if (world->rank() == 0) {
    std::printf(
        "AllGather %7lld B  ranks %d  us: best %.1f median %.1f worst %.1f\n",
        static_cast<long long>(bytes), world->size(), us_per_call[0],
        us_per_call[kBlocks / 2], us_per_call.back());
  }
}

// A rank works alone for a while and the others wait for it: what the waiting
// takes, of the cores and of the work's own time.
void MeasureWaiting(Communicator* world, double work_us) {
  constexpr int kRounds = 40;
  double wall_us = 0;
  const double cpu_before = CpuSeconds();
  char byte = 0;
  std::vector<char> all(world->size());
  const auto start = Clock::now();
  for (int round = 0; round < kRounds; ++round) {
    if (world->rank() == 0) {
      // So much processor time, however long that takes on the clock.
      const auto began = Clock::now();
      const double cpu = CpuSeconds();
      while ((CpuSeconds() - cpu) * 1e6 < work_us) {
      }
      wall_us += Microseconds(Clock::now() - began);
    }
    world->AllGather(&byte, all.data(), 1);
  }
  const double total_us = Microseconds(Clock::now() - start);
  const double share = (CpuSeconds() - cpu_before) * 1e6 / total_us;
  std::vector<double> shares(world->size());
  world->AllGather(&share, shares.data(), sizeof(share));
  if (world->rank() == 0) {
    std::printf(
        "wait for %6.0f us of work: took %.0f us, with the answer %.0f us; a "
        "waiting "
        "rank used %.0f%% of a core\n",
        work_us, wall_us / kRounds, total_us / kRounds,
        100 * *std::max_element(shares.begin() + 1, shares.end()));
  }
}

int Main() {
  auto runtime = MpiRuntime::Create({});
  if (!runtime.ok()) return 1;
  Progress progress;
  const auto backend = MakeCpuBackend(1);
  MeshConfig config;
  config.world_size = config.tp = (*runtime)->size();
  config.rank = (*runtime)->rank();
  auto mesh = Mesh::Create(config);
  auto axes =
      (*runtime)->CreateCommunicators(*mesh, {backend.get(), &progress, 1, 1});
  if (!axes.ok()) return 1;
  for (const int64_t bytes : {8, 1024, 16384, 262144}) {
    MeasureAllGather(axes->world.get(), bytes);
  }
  if ((*runtime)->size() > 1) {
    for (const double work_us : {300.0, 3000.0, 30000.0}) {
      MeasureWaiting(axes->world.get(), work_us);
    }
  }
  return (*runtime)->Shutdown().ok() ? 0 : 1;
}

}  // namespace
}  // namespace ring

int main() { return ring::Main(); }
