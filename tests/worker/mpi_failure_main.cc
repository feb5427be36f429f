// A worker group that runs collectives until one rank fails on purpose:
//   mpirun -np 4 mpi_failure_main kill|stop|stall|device|trap RANK
// Ends well only when nothing fails (RANK outside the world).
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/cpu_backend.h"
#include "kernels/debug_backend.h"
#include "kernels/elementwise/scatter.h"
#include "parallel/mpi_runtime.h"
#include "tests/support/faulty_backend.h"
#include "worker/watchdog.h"
#if RING_WITH_CUDA
#include "kernels/cuda_backend.h"
#include "tests/support/trapping_backend.h"
#endif

namespace ring {
namespace {

constexpr int kSteps = 200;
constexpr int kFaultyStep = 100;

[[noreturn]] void Suffer(const std::string& fault) {
  if (fault == "kill") raise(SIGKILL);
  if (fault == "stop") raise(SIGSTOP);
  while (true) pause();
}

// Waits after every op, and fails at the one of the faulty step: "device"
// pretends, "trap" is a GPU's kernel.
std::unique_ptr<Backend> BreakingDevice(const std::string& fault,
                                        std::atomic<const char*>* op) {
#if RING_WITH_CUDA
  if (fault == "trap") {
    auto cuda = MakeCudaBackend(0);
    RING_CHECK(cuda.ok()) << cuda.status().ToString();
    return MakeDebugBackend(
        std::make_unique<TrappingBackend>(*std::move(cuda), kFaultyStep), op);
  }
#endif
  RING_CHECK(fault == "device") << "not in this build: " << fault;
  return MakeDebugBackend(
      std::make_unique<FaultyBackend>(MakeCpuBackend(1), kFaultyStep), op);
}

absl::Status Run(MpiRuntime* runtime, Progress* progress,
                 const std::string& fault, int culprit) {
  auto link = SideLink::Create(runtime->control(), progress, {});
  if (!link.ok()) return link.status();
  Watchdog watchdog(link->get(), progress, {});
  SetCheckHandler([&](const std::string& what) {
    watchdog.Fail(absl::StrCat(what, " in op ", progress->op.load()));
  });
  const auto backend = MakeCpuBackend(1);
  const bool breaks =
      (fault == "device" || fault == "trap") && runtime->rank() == culprit;
  const auto device = breaks
                          ? BreakingDevice(fault, &progress->op)
                          : MakeDebugBackend(MakeCpuBackend(1), &progress->op);
  MeshConfig config;
  config.world_size = config.tp = runtime->size();
  config.rank = runtime->rank();
  const auto mesh = Mesh::Create(config);
  if (!mesh.ok()) return mesh.status();
  auto axes =
      runtime->CreateCommunicators(*mesh, {backend.get(), progress, 1, 1});
  if (!axes.ok()) return axes.status();
  std::vector<int> all(runtime->size());
  for (int step = 0; step < kSteps; ++step) {
    progress->EnterStep(step, 1);
    if (step == kFaultyStep && runtime->rank() == culprit && !breaks) {
      Suffer(fault);
    }
    device->ScatterInts({});
    axes->world->AllGather(&step, all.data(), sizeof(step));
  }
  watchdog.Stop();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s kill|stop|stall|device|trap RANK\n",
                 argv[0]);
    return 2;
  }
  Progress progress;
  MpiRuntime::Options options;
  options.progress = &progress;
  auto runtime = MpiRuntime::Create(options);
  if (!runtime.ok()) return 1;
  SetLogIdentity(absl::StrCat("rank ", (*runtime)->rank()));
  absl::Status status =
      Run(runtime->get(), &progress, argv[1], std::atoi(argv[2]));
  if (status.ok()) status = (*runtime)->Shutdown();
  if (status.ok()) return 0;
  LogError("failed", "status", status.ToString());
  return 1;
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) { return ring::Main(argc, argv); }
