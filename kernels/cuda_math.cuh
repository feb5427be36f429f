// Device functions that several ops share: loads and stores with conversion,
// sums over warps and blocks. All arithmetic is fp32.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace ring::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float Widen(float x) { return x; }
__device__ inline float Widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline float Widen(Float8E4M3 x) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3);
  return __half2float(__half(half));
}

template <typename T>
__device__ inline T Narrow(float x);
template <>
__device__ inline float Narrow<float>(float x) {
  return x;
}
template <>
__device__ inline BFloat16 Narrow<BFloat16>(float x) {
  return ToBFloat16(x);
}

// kCount consecutive elements, widened. Memory is read in units of up to 16
// bytes, so `from` is aligned to min(16, kCount * sizeof(T)).
template <int kCount, typename T>
__device__ inline void Load(const T* from, float (&to)[kCount]) {
  constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  if constexpr (kBytes % 16 == 0) {
    constexpr int kEach = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int part = 0; part < kBytes / 16; ++part) {
      const uint4 raw = reinterpret_cast<const uint4*>(from)[part];
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
      float* const out = to + part * kEach;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if constexpr (sizeof(T) == 4) {
          out[w] = __uint_as_float(words[w]);
        } else if constexpr (sizeof(T) == 2) {
          out[2 * w] = __uint_as_float(words[w] << 16);
          out[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
        } else {
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(
                static_cast<__nv_fp8x2_storage_t>(words[w] >> (16 * pair)),
                __NV_E4M3);
            const float2 both = __half22float2(__half2(halves));
            out[4 * w + 2 * pair] = both.x;
            out[4 * w + 2 * pair + 1] = both.y;
          }
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = Widen(from[i]);
  }
}

// Sends the bytes there on their way to L2. Both multiples of 16.
__device__ __forceinline__ void PrefetchToL2(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
               "r"(bytes)
               : "memory");
}

// The sum over the warp, in all lanes.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

// The sum over the block, in all threads. `shared` has room for one value a
// warp and may be used again after the next barrier.
__device__ inline float BlockSum(float x, float* shared) {
  const int warps = (blockDim.x + kWarp - 1) / kWarp;
  const int lane = threadIdx.x % kWarp;
  x = WarpSum(x);
  if (lane == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  return WarpSum(lane < warps ? shared[lane] : 0.0f);
}

__device__ inline float InverseRms(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}
__device__ inline float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float SwiGlu(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

// Calls body(T()) with the storage type of `dtype`, fp32 or bf16.
template <typename Body>
void WithFloatType(DType dtype, Body body) {
  if (dtype == DType::kFloat32) {
    body(float());
  } else {
    RING_CHECK(dtype == DType::kBFloat16) << Name(dtype);
    body(BFloat16());
  }
}

// As WithFloatType, for weights: fp32, bf16 or e4m3.
template <typename Body>
void WithWeightType(DType dtype, Body body) {
  if (dtype == DType::kFloat8E4M3) {
    body(Float8E4M3());
  } else {
    WithFloatType(dtype, body);
  }
}

}  // namespace ring::cuda
