// What is heard of a kernel that traps.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "kernels/base/check.h"
#include "kernels/cuda_backend.h"
#include "kernels/debug_backend.h"
#include "kernels/elementwise/scatter.h"
#include "tests/support/trapping_backend.h"

namespace ring {
namespace {

// Runs four ops, of which the third traps, and ends the process with 7 and what
// the handler of checks was told.
[[noreturn]] void RunTrappingOps(bool debug) {
  static std::atomic<const char*> op{nullptr};
  SetCheckHandler([](const std::string& what) {
    std::fprintf(stderr, "heard: %s in op %s\n", what.c_str(),
                 op == nullptr ? "none" : op.load());
    std::_Exit(7);
  });
  auto cuda = MakeCudaBackend(0);
  RING_CHECK(cuda.ok()) << cuda.status().ToString();
  std::unique_ptr<Backend> backend =
      std::make_unique<TrappingBackend>(*std::move(cuda), 2);
  if (debug) backend = MakeDebugBackend(std::move(backend), &op);
  for (int i = 0; i < 4; ++i) backend->ScatterInts({});
  backend->Synchronize();
  std::_Exit(0);
}

TEST(DeviceFailureDeathTest, ATrapEndsTheRank) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RunTrappingOps(false), testing::ExitedWithCode(7),
              "heard: .*cuda.* in op none");
}

TEST(DeviceFailureDeathTest, WaitingAfterEveryOpNamesTheOne) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RunTrappingOps(true), testing::ExitedWithCode(7),
              "heard: .*cuda.* in op ScatterInts");
}

}  // namespace
}  // namespace ring
