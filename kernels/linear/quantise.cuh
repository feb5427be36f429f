// Conversion to e4m3 with a scale of its own per row and 128 columns.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace ring::cuda {

inline constexpr float kMaxE4M3 = 448;

// What a group whose largest magnitude is max_abs is multiplied by; 0 for a
// group of zeros.
__device__ inline float InverseScale(float max_abs) {
  return max_abs > 0 ? kMaxE4M3 / max_abs : 0.0f;
}

// Two values already scaled as two bytes, the first in the lower one.
__device__ inline uint32_t QuantisePair(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE,
                                  __NV_E4M3);
}

}  // namespace ring::cuda
