#include "kernels/base/check.h"

#include <cstdio>
#include <cstdlib>

#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(CheckDeathTest, NamesConditionAndValues) {
  const int tp = 3;
  EXPECT_DEATH(RING_CHECK_EQ(tp, 4) << "ranks of a group",
               "check failed: .*with 3 == 4 ranks of a group");
}

TEST(CheckDeathTest, TellsTheHandlerOfItsThread) {
  EXPECT_EXIT(
      {
        SetCheckHandler([](const std::string& what) {
          std::fprintf(stderr, "heard: %s", what.c_str());
          std::_Exit(7);
        });
        RING_CHECK(false) << "GPU fell off the bus";
      },
      testing::ExitedWithCode(7), "heard: .*GPU fell off the bus");
}

TEST(CheckTest, PassesWithoutEvaluatingTheMessage) {
  int evaluated = 0;
  RING_CHECK(true) << ++evaluated;
  EXPECT_EQ(evaluated, 0);
}

}  // namespace
}  // namespace ring
