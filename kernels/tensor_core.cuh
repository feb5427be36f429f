// Instructions of the tensor cores and of asynchronous copies, as functions.
// Fragments of mma.m16n8k16, with g = lane / 4 and c = 2 * (lane % 4):
//   A [16, 16]: a[0] (g, c), a[1] (g + 8, c), a[2] (g, c + 8), a[3] (g + 8,
//               c + 8), each with its neighbour in the next column
//   B [16, 8]:  b0 (c, g), b1 (c + 8, g), each with its neighbour below
//   D [16, 8]:  d[0], d[1] (g, c), (g, c + 1); d[2], d[3] (g + 8, ...)
#pragma once

#include <cstdint>

#include "kernels/cuda_math.cuh"

namespace ring::cuda {

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of bf16. Lane l names the row l % 8 of matrix l / 8 and
// receives elements (g, c) and (g, c + 1) of each.
__device__ inline void LoadMatrices(uint32_t row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}

// As LoadMatrices; the lane receives (c, g) and (c + 1, g) of each.
__device__ inline void LoadMatricesTransposed(uint32_t row, uint32_t (&m)[4]) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
      : "r"(row)
      : "memory");
}

// D += A B with bf16 factors.
__device__ inline void MultiplyAdd(const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1, float (&d)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values rounded to bf16, the first in the low half.
__device__ inline uint32_t PackBf16(float first, float second) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  return packed;
}
__device__ inline float FirstOf(uint32_t packed) {
  return __uint_as_float(packed << 16);
}
__device__ inline float SecondOf(uint32_t packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

// What rounding to bf16 took from two values, rounded itself: `high` and the
// result together hold 16 bits of mantissa.
__device__ inline uint32_t PackRest(float first, float second, uint32_t high) {
  return PackBf16(first - FirstOf(high), second - SecondOf(high));
}

// 16 bytes to shared memory in the background; zeros if `wanted` is false.
__device__ inline void CopyAsync(uint32_t shared, const void* from,
                                 bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
               "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending groups of this thread's copies are under way.
template <int kPending>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace ring::cuda
