#include "kernels/base/check.h"

#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(CheckDeathTest, NamesConditionAndValues) {
  const int tp = 3;
  EXPECT_DEATH(RING_CHECK_EQ(tp, 4) << "ranks of a group",
               "check failed: .*with 3 == 4 ranks of a group");
}

TEST(CheckTest, PassesWithoutEvaluatingTheMessage) {
  int evaluated = 0;
  RING_CHECK(true) << ++evaluated;
  EXPECT_EQ(evaluated, 0);
}

}  // namespace
}  // namespace ring
