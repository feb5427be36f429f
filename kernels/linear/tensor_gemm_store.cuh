// How a consumer thread of TensorGemm writes its sums: value v[4 j + 2 h + e]
// is row 8 h + lane / 4 of the warp's 16, output 8 j + 2 (lane % 4) + e. Values
// move between the four lanes of a row so that rows are written in pieces of 32
// bytes or more.
#pragma once

#include "kernels/linear/quantise.cuh"
#include "kernels/linear/tensor_gemm_feed.cuh"

namespace ring::cuda::tensor_gemm {

// What a consumer thread knows of its place: rows row[0] and row[1] = row[0] +
// 8 of x, of which `valid` are to be written.
struct Place {
  int64_t row[2];
  bool valid[2];
  int group;  // of the warp's tile: lane / 4
  int quad;   // lane % 4
};

__device__ inline Place PlaceIn(const Tile& tile, int warpgroup) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x % kWarpgroup / kWarp;
  Place place;
  place.group = lane / 4;
  place.quad = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int in_tile =
        warpgroup * kConsumerRows + warp * 16 + h * 8 + place.group;
    place.row[h] = tile.row + in_tile;
    place.valid[h] = in_tile < tile.rows;
  }
  return place;
}

// Lane i of four neighbours gets value i of each: a 4 x 4 transposition.
__device__ inline void TransposeQuad(int quad, uint32_t (&v)[4]) {
#pragma unroll
  for (int p = 0; p < 4; p += 2) {
    const uint32_t got =
        __shfl_xor_sync(kAllLanes, quad & 1 ? v[p] : v[p + 1], 1);
    (quad & 1 ? v[p] : v[p + 1]) = got;
  }
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const uint32_t got =
        __shfl_xor_sync(kAllLanes, quad & 2 ? v[p] : v[p + 2], 2);
    (quad & 2 ? v[p] : v[p + 2]) = got;
  }
}

__device__ inline uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Writes values v[4 j + 2 h + e] of 8 * kGroups outputs from column on.
template <int kGroups, int kCount>
__device__ inline void StoreRows(const KernelArgs& args, const Place& place,
                                 int64_t column, const float (&v)[kCount],
                                 BFloat16* y) {
#pragma unroll
  for (int j = 0; j < kGroups; j += 4) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (j + i) + 2 * h;
        words[i] = PackBf16(v[at], v[at + 1]);
      }
      TransposeQuad(place.quad, words);
      const int64_t to = column + 8 * (j + place.quad);
      if (place.valid[h] && to < args.outputs) {
        *reinterpret_cast<uint4*>(y + place.row[h] * args.outputs + to) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

template <int kGroups, int kCount>
__device__ inline void StoreRows(const KernelArgs& args, const Place& place,
                                 int64_t column, const float (&v)[kCount],
                                 float* y) {
  constexpr int kBatch = 8;  // groups whose old values are fetched at a time
  const int64_t first = column + 2 * place.quad;
#pragma unroll
  for (int batch = 0; batch < kGroups; batch += kBatch) {
    float2 old[kBatch][2] = {};
    if (args.accumulate) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t to = first + 8 * (batch + j);
          if (place.valid[h] && to < args.outputs) {
            old[j][h] = *reinterpret_cast<const float2*>(
                y + place.row[h] * args.outputs + to);
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t to = first + 8 * (batch + j);
        const int at = 4 * (batch + j) + 2 * h;
        if (place.valid[h] && to < args.outputs) {
          *reinterpret_cast<float2*>(y + place.row[h] * args.outputs + to) =
              make_float2(old[j][h].x + v[at], old[j][h].y + v[at + 1]);
        }
      }
    }
  }
}

__device__ inline float FastSwiGlu(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// v[i] = silu(v[i]) * v[i + kCount / 2].
template <int kCount>
__device__ inline void ApplySwiGlu(float (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    v[i] = FastSwiGlu(v[i], v[i + kCount / 2]);
  }
}

// Quantises 64 outputs of each row: the scale is that of 128 outputs, whose
// other half is in the other block. `turn` counts the tiles of the warpgroup.
__device__ inline void StoreQuantised(const KernelArgs& args,
                                      Shared<Float8E4M3>* shared, int warpgroup,
                                      uint32_t rank, int turn,
                                      const Place& place, int64_t column,
                                      const float (&v)[64]) {
  const int parity = turn % 2;
  uint64_t* const ready = &shared->peer_max_ready[warpgroup][parity];
  float* const peer_max = shared->peer_max[warpgroup][parity];
  if (threadIdx.x % kWarpgroup == 0) {
    ArriveExpecting(ready, kConsumerRows * sizeof(float));
  }
  const int in_group =
      threadIdx.x % kWarpgroup / kWarp * 16 + place.group;  // row[0]
  float max_abs[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    max_abs[i / 2 % 2] = fmaxf(max_abs[i / 2 % 2], fabsf(v[i]));
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) {
      max_abs[h] =
          fmaxf(max_abs[h], __shfl_xor_sync(kAllLanes, max_abs[h], lane));
    }
    if (place.quad == 0) {
      StoreToPeer(&peer_max[in_group + 8 * h], __float_as_uint(max_abs[h]),
                  ready, rank ^ 1);
    }
  }
  WaitBarrier(ready, turn / 2 % 2);
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    max_abs[h] = fmaxf(max_abs[h], peer_max[in_group + 8 * h]);
    inverse[h] = InverseScale(max_abs[h]);
    if (place.quad == 0 && rank == 0 && place.valid[h]) {
      args.y_scales[place.row[h] * args.y_scale_stride + column / kScaleBlock] =
          max_abs[h] / kMaxE4M3;
    }
  }
  uint8_t* const y = static_cast<uint8_t*>(args.y);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t words[4];  // pairs of outputs 8 i + 2 quad and 32 further
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = [&](int j) {
        return QuantisePair(v[4 * j + 2 * h] * inverse[h],
                            v[4 * j + 2 * h + 1] * inverse[h]);
      };
      words[i] = pair(i) | pair(i + 4) << 16;
    }
    TransposeQuad(place.quad, words);
    if (!place.valid[h]) continue;
    uint8_t* const at =
        y + place.row[h] * args.outputs + column + 8 * place.quad;
    *reinterpret_cast<uint2*>(at) =
        make_uint2(__byte_perm(words[0], words[1], 0x5410),
                   __byte_perm(words[2], words[3], 0x5410));
    *reinterpret_cast<uint2*>(at + 32) =
        make_uint2(__byte_perm(words[0], words[1], 0x7632),
                   __byte_perm(words[2], words[3], 0x7632));
  }
}

}  // namespace ring::cuda::tensor_gemm
