#include "kernels/base/dtype.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(BFloat16Test, RoundsToNearestEven) {
  EXPECT_EQ(ToBFloat16(1.0f).bits, 0x3f80);
  // 1 + 2^-8 lies half way between 1 and 1 + 2^-7: ties to the even 1.
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-8f).bits, 0x3f80);
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-7f + 0x1p-8f).bits, 0x3f82);
  EXPECT_EQ(ToBFloat16(-2.5f).bits, 0xc020);
}

TEST(BFloat16Test, KeepsSpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ToFloat(ToBFloat16(infinity)), infinity);
  EXPECT_TRUE(std::isnan(ToFloat(ToBFloat16(std::nanf("")))));
  // The largest fp32 rounds up to infinity, as IEEE rounding asks.
  EXPECT_EQ(ToFloat(ToBFloat16(std::numeric_limits<float>::max())), infinity);
}

TEST(BFloat16Test, RoundTripsEveryFiniteCode) {
  for (int code = 0; code < 0x10000; ++code) {
    const float value = ToFloat(BFloat16{static_cast<uint16_t>(code)});
    if (std::isnan(value)) continue;
    EXPECT_EQ(ToBFloat16(value).bits, code);
  }
}

// Independent of the code under test: the value by the format's definition.
double E4M3Value(int code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -9)
                               : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(Float8E4M3Test, DecodesEveryCode) {
  for (int code = 0; code < 256; ++code) {
    const float value = ToFloat(Float8E4M3{static_cast<uint8_t>(code)});
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(value, E4M3Value(code)) << code;
    }
  }
}

TEST(Float8E4M3Test, EncodesToTheNearestCode) {
  for (int step = -500000; step <= 500000; ++step) {
    const float x = static_cast<float>(step) * 0.001f;
    const double got = ToFloat(ToFloat8E4M3(x));
    double best = 1e9;
    for (int code = 0; code < 256; ++code) {
      if ((code & 0x7f) == 0x7f) continue;
      best = std::min(best, std::fabs(E4M3Value(code) - x));
    }
    ASSERT_EQ(std::fabs(got - x), best) << x;
    if (step % 1000 == 0) step += 990;  // a sparser sweep is enough
  }
}

TEST(Float8E4M3Test, BreaksTiesToEvenAndSaturates) {
  EXPECT_EQ(ToFloat8E4M3(1.0625f).bits, 0x38);  // between 1 and 1.125
  EXPECT_EQ(ToFloat8E4M3(1.1875f).bits, 0x3a);  // between 1.125 and 1.25
  EXPECT_EQ(ToFloat8E4M3(0x1p-10f).bits, 0x00);
  EXPECT_EQ(ToFloat8E4M3(3 * 0x1p-10f).bits, 0x02);
  EXPECT_EQ(ToFloat(ToFloat8E4M3(460.0f)), 448.0f);
  EXPECT_EQ(ToFloat(ToFloat8E4M3(-1e30f)), -448.0f);
  EXPECT_EQ(ToFloat8E4M3(std::nanf("")).bits, 0x7f);
}

}  // namespace
}  // namespace ring
