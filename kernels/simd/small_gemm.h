// fp32 matrix products of attention tiles: small, in cache, one thread.
#pragma once

#include <cstdint>

#include "kernels/simd/isa.h"

namespace ring::simd {

// C = A B, or C += A B if `accumulate`. Row-major; no overlap of C with A or
// B. Sums run over k in ascending order in fp32, so the bits of a row of C do
// not depend on m.
struct SmallGemmArgs {
  const float* a = nullptr;  // [m, k], row stride lda
  int64_t lda = 0;
  const float* b = nullptr;  // [k, n], row stride ldb
  int64_t ldb = 0;
  float* c = nullptr;  // [m, n], row stride ldc
  int64_t ldc = 0;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool accumulate = false;
};

void SmallGemm(const SmallGemmArgs& args);
// The build for one instruction set, which the processor must have.
void SmallGemm(CpuIsa isa, const SmallGemmArgs& args);

}  // namespace ring::simd
