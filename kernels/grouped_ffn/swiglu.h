// The element-wise middle of a SwiGLU block.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace ring {

// h[i * h_stride + j] = silu(g) * u with g = gate[i * stride + j] and
// u = up[i * stride + j], for i < rows, j < cols; silu(z) = z / (1 + exp(-z)).
// h is of h_dtype, rounded once if that is bf16. `gate` is overwritten.
void SwiGluRows(float* gate, const float* up, int64_t rows, int64_t cols,
                int64_t stride, DType h_dtype, void* h, int64_t h_stride);

}  // namespace ring
