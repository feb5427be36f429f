// Vectors of fp32 lanes in the compilers' own vector types (gcc and clang),
// for use inside simd::Dispatch kernels. Elementwise + - * / and comparisons
// are the language's own; a scalar operand is broadcast.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/base/dtype.h"
#include "kernels/simd/isa.h"

namespace ring::simd {

// Lane count -> vector types. Aligned like one element, so they may be loaded
// from any float address.
template <int kLanes>
struct Vectors;

#define RING_SIMD_VECTORS_(lanes)                                       \
  template <>                                                           \
  struct Vectors<lanes> {                                               \
    typedef float Float                                                 \
        __attribute__((vector_size((lanes)*4), aligned(4), may_alias)); \
    typedef int32_t Int                                                 \
        __attribute__((vector_size((lanes)*4), aligned(4), may_alias)); \
    typedef uint16_t Half                                               \
        __attribute__((vector_size((lanes)*2), aligned(2), may_alias)); \
  };
RING_SIMD_VECTORS_(4)
RING_SIMD_VECTORS_(8)
RING_SIMD_VECTORS_(16)
#undef RING_SIMD_VECTORS_

template <int kLanes>
using FloatVec = typename Vectors<kLanes>::Float;
template <int kLanes>
using IntVec = typename Vectors<kLanes>::Int;

// v = kLanes values from x, widened.
template <int kLanes>
RING_INLINE void Load(const float* x, FloatVec<kLanes>& v) {
  v = *reinterpret_cast<const FloatVec<kLanes>*>(x);
}
template <int kLanes>
RING_INLINE void Load(const BFloat16* x, FloatVec<kLanes>& v) {
  const auto half = *reinterpret_cast<const typename Vectors<kLanes>::Half*>(x);
  v = (FloatVec<kLanes>)(__builtin_convertvector(half, IntVec<kLanes>) << 16);
}

template <int kLanes>
RING_INLINE void Store(const FloatVec<kLanes>& v, float* x) {
  *reinterpret_cast<FloatVec<kLanes>*>(x) = v;
}

// sums = a[0] + a[1], a[2] + a[3], ..., then the same of b.
template <int kLanes>
RING_INLINE void PairSums(const FloatVec<kLanes>& a, const FloatVec<kLanes>& b,
                          FloatVec<kLanes>& sums) {
  if constexpr (kLanes == 4) {
    sums = __builtin_shufflevector(a, b, 0, 2, 4, 6) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7);
  } else if constexpr (kLanes == 8) {
    sums = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    sums = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20,
                                   22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21,
                                   23, 25, 27, 29, 31);
  }
}

// Lane i of v[0] = sum of the lanes of v[i]; the rest of v is used up.
template <int kLanes>
RING_INLINE void SumEach(FloatVec<kLanes> (&v)[kLanes]) {
#pragma GCC unroll 4
  for (int count = kLanes / 2; count > 0; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      PairSums<kLanes>(v[2 * i], v[2 * i + 1], v[i]);
    }
  }
}

// Sum of the lanes, in pairs.
template <int kLanes>
RING_INLINE float Sum(const FloatVec<kLanes>& v) {
  float x[kLanes];
  std::memcpy(x, &v, sizeof x);
  for (int count = kLanes / 2; count > 0; count /= 2) {
    for (int i = 0; i < count; ++i) x[i] = x[2 * i] + x[2 * i + 1];
  }
  return x[0];
}

// v = exp(v) with a relative error below 2.4e-7: 0 below -87, exp(88) above 88,
// NaN for NaN. exp(v) = 2^n exp(r), |r| <= ln(2) / 2, with the Taylor
// polynomial of degree 7 for exp(r).
template <int kLanes>
RING_INLINE void Exp(FloatVec<kLanes>& v) {
  using Float = FloatVec<kLanes>;
  using Int = IntVec<kLanes>;
  const Int in_range = ~(v <= -87.0f);
  const Float bound = Float{} + 88.0f;
  const Float x = (Float)((Int)(v > bound ? bound : v) & in_range);
  // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
  const Float rounder = Float{} + 12582912.0f;
  const Float n = (x * 1.44269504f + rounder) - rounder;
  // ln(2) in two parts, the first with trailing zeros so that n * part is
  // exact.
  const Float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Float p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Int exponent = __builtin_convertvector(n, Int) + 127;
  v = (Float)((Int)(p * (Float)(exponent << 23)) & in_range);
}

}  // namespace ring::simd
