// Compiled for AVX-512 with the bf16 dot product. Only bf16 x bf16 differs from
// the plain AVX-512 kernels: vdpbf16ps multiplies pairs without widening them.
// It treats subnormal inputs and sums as zero.
#define RING_DOT_LANES 16
#include "kernels/linear/dot_panel_inl.h"

namespace ring {
namespace {

// On rows of PackPairs.
struct PairMath {
  static constexpr int kGroupCols = kLanes * 2;
  static constexpr int kGroupWords = kLanes;

  template <int kM, int kN>
  static inline __attribute__((always_inline)) void Step(
      const int32_t* const* x, const char* const* w, const Floats*,
      Floats (&acc)[kM][kN]) {
    Words words[kN];
#pragma GCC unroll 16
    for (int r = 0; r < kN; ++r) words[r] = LoadWords(w[r]);
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const __m512bh pairs = (__m512bh)LoadWords(x[i]);
#pragma GCC unroll 16
      for (int r = 0; r < kN; ++r) {
        acc[i][r] = _mm512_dpbf16_ps(acc[i][r], pairs, (__m512bh)words[r]);
      }
    }
  }
};

}  // namespace

const DotKernels kAvx512Bf16DotKernels = {
    kWidenedDotKernels.f32,
    kWidenedDotKernels.bf16,
    kWidenedDotKernels.fp8,
    {PairMath::kGroupCols, PairMath::kGroupWords, 1, PackPairs,
     Panel<Bf16Weights, PairMath>::Run}};

}  // namespace ring
