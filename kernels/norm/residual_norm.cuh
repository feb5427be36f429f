// One row of ResidualNorm, for kernels that bring the parts themselves.
#pragma once

#include <cstdint>

#include "kernels/cuda_math.cuh"
#include "kernels/norm/residual_norm.h"

namespace ring::cuda {

// Four consecutive values. Not `aligned`: they may lie anywhere. Loads go past
// L1, which does not see what another kernel or GPU has stored meanwhile.
__device__ inline void LoadQuad(const float* from, bool aligned,
                                float (&x)[4]) {
  if (aligned) {
    const float4 raw = __ldcg(reinterpret_cast<const float4*>(from));
    x[0] = raw.x;
    x[1] = raw.y;
    x[2] = raw.z;
    x[3] = raw.w;
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = __ldcg(from + e);
  }
}
__device__ inline void LoadQuad(const BFloat16* from, bool aligned,
                                float (&x)[4]) {
  if (aligned) {
    const uint2 raw = __ldcg(reinterpret_cast<const uint2*>(from));
    x[0] = __uint_as_float(raw.x << 16);
    x[1] = __uint_as_float(raw.x & 0xffff0000u);
    x[2] = __uint_as_float(raw.y << 16);
    x[3] = __uint_as_float(raw.y & 0xffff0000u);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = Widen(from[e]);
  }
}
__device__ inline void StoreQuad(const float (&x)[4], bool aligned, float* to) {
  if (aligned) {
    *reinterpret_cast<float4*>(to) = {x[0], x[1], x[2], x[3]};
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = x[e];
  }
}
__device__ inline void StoreQuad(const float (&x)[4], bool aligned,
                                 BFloat16* to) {
  BFloat16 y[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) y[e] = Narrow<BFloat16>(x[e]);
  if (aligned) {
    *reinterpret_cast<uint2*>(to) = {y[0].bits | uint32_t{y[1].bits} << 16,
                                     y[2].bits | uint32_t{y[3].bits} << 16};
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = y[e];
  }
}

// Rows whose columns stay in registers: a thread owns kQuads times four.
inline constexpr int kQuadThreads = 512;
inline constexpr int kQuads = 2;

__device__ inline int QuadColumn(int q) {
  return (q * kQuadThreads + static_cast<int>(threadIdx.x)) * 4;
}
inline bool FitQuads(int64_t cols) {
  return cols % 4 == 0 && cols <= 4 * kQuads * kQuadThreads;
}
// Whether residual, norm_weight and normed allow for loads of four columns.
inline bool AllowQuadLoads(const ResidualNormArgs& args) {
  return (reinterpret_cast<uintptr_t>(args.residual) |
          reinterpret_cast<uintptr_t>(args.norm_weight) |
          reinterpret_cast<uintptr_t>(args.normed)) %
             16 ==
         0;
}

// The thread's columns of `row`; zeros beyond the last one, and for null.
__device__ inline void LoadQuads(const float* row, int64_t cols, bool aligned,
                                 float (&x)[kQuads][4]) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[q][e] = 0;
    if (row == nullptr || QuadColumn(q) >= cols) continue;
    LoadQuad(row + QuadColumn(q), aligned, x[q]);
  }
}

// Called by a block of kQuadThreads: x is the sum of residual and parts in the
// thread's columns, `weight` what norm_weight has there. `shared` has room for
// kQuadThreads / kWarp values.
template <typename Out>
__device__ void NormQuads(const ResidualNormArgs& args, int64_t row,
                          bool aligned, float (&x)[kQuads][4],
                          const float (&weight)[kQuads][4], float* shared) {
  float squares = 0;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int i = QuadColumn(q);
    if (i < args.cols) {
      StoreQuad(x[q], aligned, args.residual + row * args.cols + i);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) squares += x[q][e] * x[q][e];
  }
  if (args.norm_weight == nullptr) return;
  const float inverse =
      InverseRms(BlockSum(squares, shared), args.cols, args.eps);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int i = QuadColumn(q);
    if (i >= args.cols) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) x[q][e] *= inverse * weight[q][e];
    StoreQuad(x[q], aligned,
              static_cast<Out*>(args.normed) + row * args.cols + i);
  }
}

inline constexpr int kNormThreads = 512;
inline constexpr int kNormWarps = kNormThreads / kWarp;

// Called by a block of kNormThreads. residual = args.residual[row], in and out;
// load(part, column) is a part's value, scale(part) what it is multiplied by.
// A thread owns every kNormThreads-th column and takes kUnroll of them at a
// time, so that as many loads are under way; the order of the additions does
// not depend on that. `shared` has room for kNormWarps values.
template <typename Out, typename LoadPart, typename ScaleOf>
__device__ void AddAndNormRow(const ResidualNormArgs& args, int64_t row,
                              LoadPart load, ScaleOf scale, float* shared) {
  constexpr int kUnroll = 8;
  const int cols = static_cast<int>(args.cols);
  float* const residual = args.residual + row * args.cols;
  float squares = 0;
  for (int begin = threadIdx.x; begin < cols; begin += kUnroll * kNormThreads) {
    float sum[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = begin + u * kNormThreads;
      if (i < cols) sum[u] = residual[i];
    }
    for (int part = 0; part < args.num_parts; ++part) {
      const float factor = scale(part);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int i = begin + u * kNormThreads;
        if (i < cols) sum[u] += factor * load(part, i);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = begin + u * kNormThreads;
      if (i < cols) residual[i] = sum[u];
      squares += sum[u] * sum[u];
    }
  }
  if (args.norm_weight == nullptr) return;
  const float inverse =
      InverseRms(BlockSum(squares, shared), args.cols, args.eps);
  Out* const normed = static_cast<Out*>(args.normed) + row * args.cols;
  // A thread meets the columns that it has written itself.
  for (int i = threadIdx.x; i < cols; i += kNormThreads) {
    normed[i] = Narrow<Out>(residual[i] * inverse * args.norm_weight[i]);
  }
}

}  // namespace ring::cuda
