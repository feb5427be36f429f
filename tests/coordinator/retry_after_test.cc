#include "coordinator/retry_after.h"

#include <gtest/gtest.h>

namespace ring {
namespace {

using std::chrono::milliseconds;

TEST(RetryAfterTest, TravelsInAStatus) {
  const absl::Status status =
      WithRetryAfter(absl::ResourceExhaustedError("full"), milliseconds(1234));
  EXPECT_EQ(RetryAfter(status), milliseconds(1234));
  EXPECT_EQ(RetryAfter(absl::ResourceExhaustedError("full")), std::nullopt);
}

TEST(RetryEstimateTest, FollowsTheRateOfEnds) {
  RetryEstimate estimate;
  EXPECT_EQ(estimate.Get(/*running=*/1, /*waiting=*/2), milliseconds(2000));
  // 4 that last 800 ms end every 200 ms; half of 20 waiting and one more.
  estimate.OnEnd(milliseconds(800));
  EXPECT_EQ(estimate.Get(4, 20), milliseconds(2200));
  EXPECT_EQ(estimate.Get(8, 20), milliseconds(1100));
  // The mean of the first two, then a moving average.
  estimate.OnEnd(milliseconds(1600));
  EXPECT_EQ(estimate.Get(1, 0), milliseconds(1200));
  for (int i = 0; i < 200; ++i) estimate.OnEnd(milliseconds(5000));
  EXPECT_NEAR(static_cast<double>(estimate.Get(1, 0).count()), 5000, 1);
}

TEST(RetryEstimateTest, IsBounded) {
  RetryEstimate estimate;
  estimate.OnEnd(milliseconds(0));
  EXPECT_EQ(estimate.Get(16, 1024), RetryEstimate::kMin);
  estimate.OnEnd(std::chrono::hours(1));
  EXPECT_EQ(estimate.Get(0, 1024), RetryEstimate::kMax);
}

}  // namespace
}  // namespace ring
