#include "kernels/rope/rope.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"

namespace ring {
namespace {

TEST(RopeFrequenciesTest, FallGeometricallyWithoutScaling) {
  RopeParameters p;
  p.rotary_dim = 64;
  p.theta = 1e6;
  const RopeFrequencies f = MakeRopeFrequencies(p);
  ASSERT_EQ(f.frequency.size(), 32u);
  EXPECT_EQ(f.gain, 1);
  EXPECT_DOUBLE_EQ(f.frequency[0], 1);
  EXPECT_DOUBLE_EQ(f.frequency[16], 1e-3);
  for (int i = 1; i < 32; ++i) {
    EXPECT_NEAR(f.frequency[i] / f.frequency[i - 1], std::pow(1e6, -1.0 / 32),
                1e-12);
  }
}

// The extension from 128K to 512K: dimensions up to 15 keep their frequency,
// those from 24 on are divided by 4, in between it is a ramp.
TEST(RopeFrequenciesTest, YarnDividesTheSlowDimensions) {
  RopeParameters p;
  p.rotary_dim = 64;
  p.theta = 1e6;
  const RopeFrequencies plain = MakeRopeFrequencies(p);
  p.factor = 4;
  p.original_max_position_embeddings = 131072;
  const RopeFrequencies f = MakeRopeFrequencies(p);
  EXPECT_NEAR(f.gain, 1.13863, 1e-5);
  for (int i = 0; i < 32; ++i) {
    const double ramp = i <= 15 ? 0 : i >= 24 ? 1 : (i - 15) / 9.0;
    EXPECT_NEAR(f.frequency[i] / plain.frequency[i], 1 - ramp + ramp / 4, 1e-12)
        << i;
  }
  p.attn_factor = 2;
  EXPECT_NEAR(MakeRopeFrequencies(p).gain, 2 * 1.13863, 2e-5);
  p.extrapolation_factor = 0;  // every dimension is divided
  EXPECT_NEAR(MakeRopeFrequencies(p).frequency[0], 0.25, 1e-12);
}

TEST(RopeFrequenciesTest, NoRotaryDimensions) {
  RopeParameters p;
  p.theta = 1e4;
  EXPECT_TRUE(MakeRopeFrequencies(p).frequency.empty());
}

TEST(RopeTableTest, AnglesAreExactAtLargePositions) {
  const std::vector<int32_t> positions = {0, 1, 99999, 524287};
  const std::vector<double> frequency = {1.0, 0.31622776601683794, 1e-3};
  std::vector<float> cos(12, -9), sin(12, -9);
  RopeTableArgs args;
  args.positions = positions.data();
  args.rows = 4;
  args.frequency = frequency.data();
  args.gain = 1.25;
  args.half = 3;
  args.cos = cos.data();
  args.sin = sin.data();
  ThreadPool pool(2);
  cpu::RopeTable(args, &pool);
  for (int r = 0; r < 4; ++r) {
    for (int i = 0; i < 3; ++i) {
      const long double angle =
          static_cast<long double>(positions[r]) * frequency[i];
      EXPECT_NEAR(cos[r * 3 + i], 1.25L * std::cos(angle), 1e-7);
      EXPECT_NEAR(sin[r * 3 + i], 1.25L * std::sin(angle), 1e-7);
    }
  }
}

TEST(RopeTableTest, NoRows) {
  RopeTableArgs args;
  ThreadPool pool(1);
  cpu::RopeTable(args, &pool);
}

}  // namespace
}  // namespace ring
