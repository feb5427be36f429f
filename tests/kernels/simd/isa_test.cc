#include "kernels/simd/isa.h"

#include <unistd.h>

#include <cstdlib>

#include "gtest/gtest.h"

namespace ring {
namespace {

struct LanesKernel {
  template <int kLanes>
  RING_INLINE static void Run(int* lanes) {
    *lanes = kLanes;
  }
};

int LanesOf(CpuIsa isa) {
  int lanes = 0;
  simd::DispatchTo<LanesKernel>(isa, &lanes);
  return lanes;
}

TEST(CpuIsaTest, EachRunsTheWidestKernelItHas) {
  EXPECT_EQ(LanesOf(CpuIsa::kPortable), 4);
  for (CpuIsa isa : kAllCpuIsas) {
    if (isa == CpuIsa::kPortable) continue;
    if (isa > DetectCpuIsa()) break;
    EXPECT_EQ(LanesOf(isa), isa == CpuIsa::kAvx2 ? 8 : 16) << Name(isa);
  }
}

// The choice is made once in a process, so each wish gets one of its own.
class CpuIsaDeathTest : public testing::Test {
 protected:
  CpuIsaDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  // Ends this process: with 0 if RING_CPU_ISA=wish makes `expected` active.
  [[noreturn]] static void ExitAsWished(const char* wish, CpuIsa expected) {
    setenv("RING_CPU_ISA", wish, 1);
    const bool as_expected = ActiveCpuIsa() == expected;
    _exit(as_expected ? 0 : 1);
  }
};

TEST_F(CpuIsaDeathTest, TheEnvironmentChoosesALowerOne) {
  for (CpuIsa isa : kAllCpuIsas) {
    if (isa > DetectCpuIsa()) break;
    EXPECT_EXIT(ExitAsWished(Name(isa), isa), testing::ExitedWithCode(0), "")
        << Name(isa);
  }
}

TEST_F(CpuIsaDeathTest, AnEmptyWishIsNone) {
  EXPECT_EXIT(ExitAsWished("", DetectCpuIsa()), testing::ExitedWithCode(0),
              "^$");
}

TEST_F(CpuIsaDeathTest, AnUnknownWishIsLoggedAndIgnored) {
  EXPECT_EXIT(ExitAsWished("avx9000", DetectCpuIsa()),
              testing::ExitedWithCode(0), "RING_CPU_ISA ignored.*avx9000");
}

}  // namespace
}  // namespace ring
