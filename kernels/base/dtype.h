// Storage types of tensors and their conversions to and from fp32.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace ring {

// Element types that a tensor can have in memory or in a checkpoint.
enum class DType : uint8_t {
  kFloat32,
  kBFloat16,
  kFloat8E4M3,  // OCP e4m3fn: no infinities, NaN = 0x7f and 0xff, max 448
  kInt32,
};

// Bytes of one element.
constexpr size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
      return 2;
    case DType::kFloat8E4M3:
      return 1;
  }
  return 0;
}

// "f32", "bf16", "f8_e4m3", "i32": for logs and errors.
constexpr const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "f32";
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat8E4M3:
      return "f8_e4m3";
    case DType::kInt32:
      return "i32";
  }
  return "?";
}

// The upper half of an fp32. A storage type: arithmetic is done in fp32.
struct BFloat16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2);

// Exact.
constexpr float ToFloat(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Rounds to nearest, ties to even. NaN stays NaN (made quiet).
constexpr BFloat16 ToBFloat16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<uint16_t>((u >> 16) | 0x0040u)};
  }
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// One e4m3fn byte.
struct Float8E4M3 {
  uint8_t bits;
};
static_assert(sizeof(Float8E4M3) == 1);

// Exact. Bias 7; subnormals are multiples of 2^-9.
constexpr float ToFloat(Float8E4M3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

// Rounds to nearest, ties to even; saturates at +-448. NaN becomes 0x7f.
Float8E4M3 ToFloat8E4M3(float x);

}  // namespace ring
