// Compiled for AVX-512 with the bf16 dot product. Only bf16 x bf16 differs from
// the plain AVX-512 kernels: vdpbf16ps multiplies pairs without widening them.
// It treats subnormal inputs and sums as zero.
#define RING_DOT_LANES 16
#include "kernels/linear/dot_panel_inl.h"

namespace ring {
namespace {

// Packed rows keep bf16 in column order, two to a word, like the weights.
struct PairMath {
  static constexpr int kGroupCols = kLanes * 2;
  static constexpr int kGroupWords = kLanes;

  // x_dtype is bf16 here.
  static void Pack(const DotLayout& layout, const void* x, DType,
                   int32_t* packed) {
    for (int64_t s = 0; s < layout.segments; ++s) {
      const int64_t begin = SegmentBegin(layout, s);
      const int64_t cols = SegmentEnd(layout, s) - begin;
      int32_t* to = packed + SegmentWord(layout, s);
      std::memset(to, 0,
                  (cols + kGroupCols - 1) / kGroupCols * kGroupWords * 4);
      std::memcpy(to, static_cast<const uint16_t*>(x) + begin, cols * 2);
    }
  }

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
    kWidenedDotKernels.f32, kWidenedDotKernels.bf16, kWidenedDotKernels.fp8,
    MakeDotKernel<Bf16Weights, PairMath>()};

}  // namespace ring
