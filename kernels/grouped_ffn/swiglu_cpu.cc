#include <algorithm>

#include "kernels/grouped_ffn/swiglu.h"
#include "kernels/simd/isa.h"
#include "kernels/simd/vec.h"

namespace ring {
namespace {

// One vector; the rest of a row is computed in a copy.
template <int kLanes>
RING_INLINE void Activate(float* gate, const float* up) {
  simd::FloatVec<kLanes> g, u;
  simd::Load<kLanes>(gate, g);
  simd::Load<kLanes>(up, u);
  simd::FloatVec<kLanes> e = -g;
  simd::Exp<kLanes>(e);
  simd::Store<kLanes>(g / (e + 1.0f) * u, gate);
}

// gate[j] = silu(gate[j]) * up[j]
struct SwiGluKernel {
  template <int kLanes>
  RING_INLINE static void Run(float* gate, const float* up, int64_t cols) {
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) Activate<kLanes>(gate + j, up + j);
    if (j == cols) return;
    float rest_gate[kLanes] = {};
    float rest_up[kLanes] = {};
    std::copy(gate + j, gate + cols, rest_gate);
    std::copy(up + j, up + cols, rest_up);
    Activate<kLanes>(rest_gate, rest_up);
    std::copy(rest_gate, rest_gate + (cols - j), gate + j);
  }
};

}  // namespace

void SwiGluRows(float* gate, const float* up, int64_t rows, int64_t cols,
                int64_t stride, DType h_dtype, void* h, int64_t h_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    float* const g = gate + i * stride;
    simd::Dispatch<SwiGluKernel>(g, up + i * stride, cols);
    if (h_dtype == DType::kBFloat16) {
      std::transform(g, g + cols, static_cast<BFloat16*>(h) + i * h_stride,
                     ToBFloat16);
    } else {
      std::copy(g, g + cols, static_cast<float*>(h) + i * h_stride);
    }
  }
}

}  // namespace ring
