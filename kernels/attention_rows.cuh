// What both attention ops do to a row: find its segment, and norm and rotate
// its heads.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/step_rows.h"
#include "kernels/tensor_core.cuh"

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

// Rows of the prompt segments in tiles of at most tile_rows, numbered through.
struct PromptTile {
  int segment = -1;  // -1: there are fewer tiles
  int number = 0;    // within the segment
  int count = 0;     // of the segment
};

// How many tiles there can be: every segment may end in a part of one.
inline int64_t MaxPromptTiles(const StepSegments& segments, int64_t rows,
                              int tile_rows) {
  return rows / tile_rows + segments.num_segments -
         segments.num_decode_segments;
}

// A warp calls this as a whole.
__device__ inline PromptTile FindPromptTile(const StepSegments& segments,
                                            int tile_rows, int index) {
  const int lane = threadIdx.x % kWarp;
  int before = 0;
  for (int base = segments.num_decode_segments; base < segments.num_segments;
       base += kWarp) {
    const int s = base + lane;
    const int tiles = s < segments.num_segments
                          ? (segments.row_count[s] + tile_rows - 1) / tile_rows
                          : 0;
    int end = tiles;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, end, offset);
      if (lane >= offset) end += other;
    }
    end += before;
    const unsigned found = __ballot_sync(kAllLanes, index < end);
    if (found != 0) {
      const int source = __ffs(found) - 1;
      const int count = __shfl_sync(kAllLanes, tiles, source);
      const int begin = __shfl_sync(kAllLanes, end, source) - count;
      return {base + source, index - begin, count};
    }
    before = __shfl_sync(kAllLanes, end, kWarp - 1);
  }
  return {};
}

// 4 consecutive elements of a head, aligned as such.
__device__ inline void LoadFour(const float* from, float (&x)[4]) {
  Load(from, x);
}
__device__ inline void LoadFour(const BFloat16* from, float (&x)[4]) {
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  x[0] = __uint_as_float(raw.x << 16);
  x[1] = __uint_as_float(raw.x & 0xffff0000u);
  x[2] = __uint_as_float(raw.y << 16);
  x[3] = __uint_as_float(raw.y & 0xffff0000u);
}

__device__ inline void StoreFour(const float (&x)[4], float* to) {
  *reinterpret_cast<float4*>(to) = {x[0], x[1], x[2], x[3]};
}
__device__ inline void StoreFour(const float (&x)[4], BFloat16* to) {
  *reinterpret_cast<uint2*>(to) = {PackBf16(x[0], x[1]), PackBf16(x[2], x[3])};
}

// A head held by 8 lanes: x[j] of a lane are elements HeadColumn(j) + 0..3. So
// a warp prepares 4 heads at a time.
inline constexpr int kHeadLanes = 8;
__device__ inline int HeadColumn(int j) {
  return static_cast<int>(threadIdx.x % kHeadLanes) * 4 + j * kHeadLanes * 4;
}

template <int kParts, typename T>
__device__ inline void LoadHeadPart(const T* head, float (&x)[kParts][4]) {
#pragma unroll
  for (int j = 0; j < kParts; ++j) LoadFour(head + HeadColumn(j), x[j]);
}

template <int kParts>
__device__ inline void Silu(float (&x)[kParts][4]) {
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[j][e] *= Sigmoid(x[j][e]);
  }
}

// Norm (skipped if `weight` is null) and rotation of x, which was loaded from
// `head`. The other halves of the rotated pairs are loaded once more, from the
// first-level cache. REQUIRES: half % 4 == 0.
template <int kParts, typename T>
__device__ inline void NormAndRotatePart(const T* head, const float* weight,
                                         float eps, const float* cos,
                                         const float* sin, int half, bool silu,
                                         float (&x)[kParts][4]) {
  float scale = 1.0f;
  if (weight != nullptr) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) squares += x[j][e] * x[j][e];
    }
#pragma unroll
    for (int offset = 1; offset < kHeadLanes; offset *= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, offset);
    }
    scale = InverseRms(squares, 4 * kHeadLanes * kParts, eps);
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      float w[4];
      LoadFour(weight + HeadColumn(j), w);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[j][e] *= scale * w[e];
    }
  }
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    const int i = HeadColumn(j);
    if (i >= 2 * half) continue;
    const bool upper = i >= half;
    const int angle = upper ? i - half : i;
    const int partner = upper ? i - half : i + half;
    float other[4], c[4], s[4];
    LoadFour(head + partner, other);
    LoadFour(cos + angle, c);
    LoadFour(sin + angle, s);
    float w[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    if (weight != nullptr) LoadFour(weight + partner, w);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (silu) other[e] *= Sigmoid(other[e]);
      const float y = other[e] * scale * w[e];
      x[j][e] = x[j][e] * c[e] + (upper ? y : -y) * s[e];
    }
  }
}

// The columns of one part of x in all lanes.
inline constexpr int kPartColumns = 4 * kHeadLanes;

// Rotation of x where half is kDistance * kPartColumns, so that a lane has both
// halves of every pair.
template <int kDistance, int kParts>
__device__ inline void RotatePairs(const float* cos, const float* sin,
                                   float (&x)[kParts][4]) {
#pragma unroll
  for (int j = 0; j < kDistance; ++j) {
    float c[4], s[4];
    LoadFour(cos + HeadColumn(j), c);
    LoadFour(sin + HeadColumn(j), s);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float lower = x[j][e];
      const float upper = x[j + kDistance][e];
      x[j][e] = lower * c[e] - upper * s[e];
      x[j + kDistance][e] = upper * c[e] + lower * s[e];
    }
  }
}

}  // namespace ring::cuda
