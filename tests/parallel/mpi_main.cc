// Runs GoogleTest on every rank of an MPI world. The program fails if any
// rank fails, as mpirun returns the first status that is not 0.
#include <chrono>
#include <cstdio>

#include "gtest/gtest.h"
#include "kernels/base/log.h"
#include "tests/parallel/mpi_world.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  ring::MpiRuntime::Options options;
  // A rank that has failed leaves its peers waiting; they end soon after.
  options.deadline = std::chrono::seconds(20);
  options.progress = &ring::MpiWorld::Get().progress;
  auto runtime = ring::MpiRuntime::Create(options);
  if (!runtime.ok()) {
    std::fprintf(stderr, "%s\n", runtime.status().ToString().c_str());
    return 1;
  }
  ring::SetLogIdentity(absl::StrCat("rank ", (*runtime)->rank()));
  if ((*runtime)->rank() != 0) {
    testing::TestEventListeners& listeners =
        testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new ring::FailurePrinter((*runtime)->rank()));
  }
  ring::MpiWorld::Get().runtime = runtime->get();
  const int result = RUN_ALL_TESTS();
  const absl::Status shutdown = (*runtime)->Shutdown();
  if (!shutdown.ok()) {
    std::fprintf(stderr, "%s\n", shutdown.ToString().c_str());
    return 1;
  }
  return result;
}
