#include "kernels/base/dtype.h"

#include <cmath>

namespace ring {

Float8E4M3 ToFloat8E4M3(float x) {
  if (std::isnan(x)) return {0x7f};
  const uint8_t sign = std::signbit(x) ? 0x80 : 0x00;
  const float magnitude = std::fabs(x);
  if (magnitude >= 448.0f) return {static_cast<uint8_t>(sign | 0x7e)};
  if (magnitude < 0x1p-6f) {
    // Subnormals share the spacing 2^-9; rounding up to 8 gives the smallest
    // normal, whose code is 8 as well. nearbyint rounds ties to even.
    const auto code = static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
    return {static_cast<uint8_t>(sign | code)};
  }
  // Keep 3 mantissa bits of the fp32 pattern, round to nearest even, rebias
  // the exponent from 127 to 7. 448 is checked above, but values that round
  // up past it must saturate as well.
  uint32_t u = std::bit_cast<uint32_t>(magnitude);
  u += 0x7ffffu + ((u >> 20) & 1u);
  const uint32_t code = (u >> 20) - (120u << 3);
  return {static_cast<uint8_t>(sign | (code > 0x7e ? 0x7e : code))};
}

}  // namespace ring
