#include "kernels/simd/small_gemm.h"

#include "kernels/simd/vec.h"

namespace ring::simd {
namespace {

// Rows and vectors of the block of C that stays in registers: 12 x 2 = 24
// accumulators of the 32 registers of AVX-512, 6 x 2 = 12 of 16 otherwise.
template <int kLanes>
inline constexpr int kBlockRows = kLanes == 16 ? 12 : 6;
inline constexpr int kBlockVectors = 2;

// C block [kRows, kVectors * kLanes] += or = A rows times B columns.
template <int kLanes, int kRows, int kVectors>
RING_INLINE void Block(const SmallGemmArgs& g, int64_t row, int64_t column) {
  using Vec = FloatVec<kLanes>;
  Vec sum[kRows][kVectors];
  float* const c = g.c + row * g.ldc + column;
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      if (g.accumulate) {
        Load<kLanes>(c + i * g.ldc + v * kLanes, sum[i][v]);
      } else {
        sum[i][v] = Vec{};
      }
    }
  }
  const float* const a = g.a + row * g.lda;
  const float* b = g.b + column;
  for (int64_t k = 0; k < g.k; ++k, b += g.ldb) {
    Vec b_vec[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) Load<kLanes>(b + v * kLanes, b_vec[v]);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Vec a_vec = Vec{} + a[i * g.lda + k];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a_vec * b_vec[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Store<kLanes>(sum[i][v], c + i * g.ldc + v * kLanes);
    }
  }
}

// The rows from `row` on, in blocks of kRows, then of half as many.
template <int kLanes, int kRows, int kVectors>
RING_INLINE void Columns(const SmallGemmArgs& g, int64_t row, int64_t column) {
  for (; row + kRows <= g.m; row += kRows) {
    Block<kLanes, kRows, kVectors>(g, row, column);
  }
  if constexpr (kRows > 1) {
    Columns<kLanes, kRows / 2, kVectors>(g, row, column);
  }
}

// The columns that do not fill a vector.
RING_INLINE void ScalarColumns(const SmallGemmArgs& g, int64_t column) {
  for (int64_t i = 0; i < g.m; ++i) {
    for (int64_t j = column; j < g.n; ++j) {
      float sum = g.accumulate ? g.c[i * g.ldc + j] : 0.0f;
      for (int64_t k = 0; k < g.k; ++k) {
        sum += g.a[i * g.lda + k] * g.b[k * g.ldb + j];
      }
      g.c[i * g.ldc + j] = sum;
    }
  }
}

struct SmallGemmKernel {
  template <int kLanes>
  RING_INLINE static void Run(const SmallGemmArgs* args) {
    const SmallGemmArgs& g = *args;
    constexpr int kWide = kBlockVectors * kLanes;
    int64_t column = 0;
    for (; column + kWide <= g.n; column += kWide) {
      Columns<kLanes, kBlockRows<kLanes>, kBlockVectors>(g, 0, column);
    }
    for (; column + kLanes <= g.n; column += kLanes) {
      Columns<kLanes, kBlockRows<kLanes>, 1>(g, 0, column);
    }
    ScalarColumns(g, column);
  }
};

}  // namespace

void SmallGemm(CpuIsa isa, const SmallGemmArgs& args) {
  DispatchTo<SmallGemmKernel>(isa, &args);
}

void SmallGemm(const SmallGemmArgs& args) { SmallGemm(ActiveCpuIsa(), args); }

}  // namespace ring::simd
