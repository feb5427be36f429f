// Small loops over one row that several CPU ops share. All arithmetic is fp32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace ring::cpu {

// out[0..n) = x[offset .. offset + n), widened. x is fp32 or bf16.
inline void LoadRow(const void* x, DType dtype, int64_t offset, int64_t n,
                    float* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, static_cast<const float*>(x) + offset, n * sizeof(float));
    return;
  }
  RING_CHECK(dtype == DType::kBFloat16) << Name(dtype);
  const BFloat16* const from = static_cast<const BFloat16*>(x) + offset;
  for (int64_t i = 0; i < n; ++i) out[i] = ToFloat(from[i]);
}

// out[offset .. offset + n) = x[0..n), rounded once. out is fp32 or bf16.
inline void StoreRow(const float* x, int64_t n, DType dtype, int64_t offset,
                     void* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(static_cast<float*>(out) + offset, x, n * sizeof(float));
    return;
  }
  RING_CHECK(dtype == DType::kBFloat16) << Name(dtype);
  BFloat16* const to = static_cast<BFloat16*>(out) + offset;
  for (int64_t i = 0; i < n; ++i) to[i] = ToBFloat16(x[i]);
}

// Sum of x[i]^2 in 16 lanes, folded pairwise: vectorises without reordering
// freedom, so every instruction set gives the same order.
inline float SumOfSquares(const float* x, int64_t n) {
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += x[i + lane] * x[i + lane];
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += x[i] * x[i];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// 1 / sqrt(mean of squares + eps).
inline float InverseRms(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(n) + eps);
}

inline float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Query or key head x[0..head_dim), in place: RMS norm with `weight` (skipped
// if null), then rotation of the pairs (i, i + half), i < half.
inline void NormAndRotateHead(float* x, int head_dim, const float* weight,
                              float eps, const float* cos, const float* sin,
                              int half) {
  if (weight != nullptr) {
    const float scale = InverseRms(SumOfSquares(x, head_dim), head_dim, eps);
    for (int i = 0; i < head_dim; ++i) x[i] = x[i] * scale * weight[i];
  }
  for (int i = 0; i < half; ++i) {
    const float a = x[i];
    const float b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

}  // namespace ring::cpu
