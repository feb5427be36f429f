// One row of ResidualNorm, for kernels that bring the parts themselves.
#pragma once

#include <cstdint>

#include "kernels/cuda_math.cuh"
#include "kernels/norm/residual_norm.h"

namespace ring::cuda {

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
