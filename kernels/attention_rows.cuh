// What both attention ops do to a row: find its segment, and norm and rotate
// its heads.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/step_rows.h"

namespace ring::cuda {

// The segment that holds `row`, or -1 for a padding row. A warp calls this as
// a whole.
__device__ inline int SegmentOfRow(const StepSegments& segments, int64_t row) {
  const int lane = threadIdx.x % kWarp;
  for (int base = 0; base < segments.num_segments; base += kWarp) {
    const int s = base + lane;
    bool here = false;
    if (s < segments.num_segments) {
      const int64_t begin = segments.row_begin[s];
      here = row >= begin && row < begin + segments.row_count[s];
    }
    const unsigned found = __ballot_sync(kAllLanes, here);
    if (found != 0) return base + __ffs(found) - 1;
  }
  return -1;
}

// RMS norm (skipped if `weight` is null) and rotation of one head by one warp:
// lane l holds elements l, l + 32, ... of the head in x. The pairs (i, i +
// half) meet through `exchange`, [32 * kEach] of shared memory of this warp.
template <int kEach>
__device__ inline void NormAndRotateHead(float (&x)[kEach], const float* weight,
                                         float eps, const float* cos,
                                         const float* sin, int half,
                                         float* exchange) {
  constexpr int kDim = kEach * kWarp;
  const int lane = threadIdx.x % kWarp;
  if (weight != nullptr) {
    float squares = 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) squares += x[e] * x[e];
    const float scale = InverseRms(WarpSum(squares), kDim, eps);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      x[e] *= scale * weight[e * kWarp + lane];
    }
  }
  if (half == 0) return;
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) exchange[e * kWarp + lane] = x[e];
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = e * kWarp + lane;
    if (i < half) {
      x[e] = x[e] * cos[i] - exchange[i + half] * sin[i];
    } else if (i < 2 * half) {
      x[e] = x[e] * cos[i - half] + exchange[i - half] * sin[i - half];
    }
  }
}

}  // namespace ring::cuda
