// The element-wise middle of a SwiGLU block.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace ring {

// silu(gate) * up with silu(z) = z / (1 + exp(-z)).
inline float SwiGlu(float gate, float up) {
  return gate / (1.0f + std::exp(-gate)) * up;
}

// h[i * h_stride + j] = SwiGlu(gate[i * stride + j], up[i * stride + j]) for
// i < rows, j < cols; h is of h_dtype, rounded once if that is bf16.
inline void SwiGluRows(const float* gate, const float* up, int64_t rows,
                       int64_t cols, int64_t stride, DType h_dtype, void* h,
                       int64_t h_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* g = gate + i * stride;
    const float* u = up + i * stride;
    if (h_dtype == DType::kBFloat16) {
      BFloat16* to = static_cast<BFloat16*>(h) + i * h_stride;
      for (int64_t j = 0; j < cols; ++j) to[j] = ToBFloat16(SwiGlu(g[j], u[j]));
    } else {
      float* to = static_cast<float*>(h) + i * h_stride;
      for (int64_t j = 0; j < cols; ++j) to[j] = SwiGlu(g[j], u[j]);
    }
  }
}

}  // namespace ring
