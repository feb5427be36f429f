// Products of many rows on tensor cores: tiles of activations times tiles of
// weights, for bf16 activations and bf16 or block-scaled e4m3 weights.
//
//   out[i][n] = sum_k x[i][k] w[n][k]
//
// A block of 4 warps owns 64 activation rows and 64 weight rows and walks the
// columns in steps of 32; warp (a, b) owns 32 x 32 of the tile as 2 x 4
// fragments of mma.m16n8k16. Shared memory: two tiles of 64 rows of 40
// elements (32 and padding that keeps fragment loads free of bank conflicts),
// 10 KiB. Sums of e4m3 weights are scaled in fp32 at every end of a block of
// 128 columns. Bound: FLOP, far below the tensor cores' peak, since loads are
// not overlapped with products.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/linear/device_matrix.cuh"

namespace ring::cuda {

inline constexpr int kTile = 64;         // rows and outputs of a block
inline constexpr int kTileColumns = 32;  // per step
inline constexpr int kTileStride = kTileColumns + 8;
inline constexpr int kTileThreads = 128;

// Fragments of one warp: [row block of 16][output block of 8][4 values].
// Value v of lane l is row (l / 4 + 8 * (v / 2)), output (l % 4 * 2 + v % 2).
struct TileSums {
  float v[2][4][4];
};

// D += A B for one fragment: A [16, 16] and B [16, 8] of bf16 pairs.
__device__ inline void MultiplyFragment(const uint32_t (&a)[4],
                                        const uint32_t (&b)[2], float (&d)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Where the calling thread's fragments begin in the block's tile.
__device__ inline int TileRow() { return threadIdx.x / kWarp / 2 * 32; }
__device__ inline int TileOutput() { return threadIdx.x / kWarp % 2 * 32; }

// Copies 64 rows of 32 columns from column k on to shared memory. row(i)
// is the i-th row of the tile, or null, which gives zeros, as do columns past
// `cols`. Called by the whole block.
template <typename T, typename Row>
__device__ inline void LoadTile(Row row, int64_t k, int64_t cols,
                                BFloat16 (&tile)[kTile][kTileStride]) {
  constexpr int kUnit = 8;
  constexpr int kUnits = kTileColumns / kUnit;
  for (int u = threadIdx.x; u < kTile * kUnits; u += kTileThreads) {
    const int i = u / kUnits;
    const int j = u % kUnits * kUnit;
    const T* const from = row(i);
    float values[kUnit] = {};
    if (from != nullptr) {
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        if (k + j + e < cols) values[e] = Widen(from[k + j + e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kUnit; ++e)
      tile[i][j + e] = Narrow<BFloat16>(values[e]);
  }
}

// The product of the block's tile: rows x_row(0..63) (null: none) and weight
// rows n .. n + 63. Called by the whole block.
template <typename W, typename XRow>
__device__ inline void MultiplyTile(const WeightMatrix& w, int64_t n,
                                    XRow x_row, TileSums* sums) {
  __shared__ __align__(16) BFloat16 x_tile[kTile][kTileStride];
  __shared__ __align__(16) BFloat16 w_tile[kTile][kTileStride];
  const int lane = threadIdx.x % kWarp;
  const int group = lane / 4;
  const int pair = lane % 4 * 2;
  const auto w_row = [&](int i) -> const W* {
    if (n + i >= w.rows) return nullptr;
    return static_cast<const W*>(w.data) + (n + i) * w.row_stride;
  };
  TileSums part = {};
  *sums = {};
  for (int64_t k = 0; k < w.cols;) {
    // A step never crosses a scale block.
    int64_t end = k + kTileColumns;
    if constexpr (sizeof(W) == 1) {
      const int64_t block_end =
          ((w.scale_col_offset + k) / kScaleBlock + 1) * kScaleBlock -
          w.scale_col_offset;
      end = min(end, block_end);
    }
    end = min(end, w.cols);
    __syncthreads();
    LoadTile<BFloat16>(x_row, k, end, x_tile);
    LoadTile<W>(w_row, k, end, w_tile);
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kTileColumns; kk += 16) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int row = TileRow() + m * 16 + group;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          a[m][q] = *reinterpret_cast<const uint32_t*>(
              &x_tile[row + q % 2 * 8][kk + pair + q / 2 * 8]);
        }
      }
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        uint32_t b[2];
        const int row = TileOutput() + o * 8 + group;
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          b[q] = *reinterpret_cast<const uint32_t*>(
              &w_tile[row][kk + pair + q * 8]);
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) MultiplyFragment(a[m], b, part.v[m][o]);
      }
    }
    if constexpr (sizeof(W) == 1) {
      if (end == w.cols || (w.scale_col_offset + end) % kScaleBlock == 0) {
#pragma unroll
        for (int o = 0; o < 4; ++o) {
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const int64_t output = n + TileOutput() + o * 8 + pair + v % 2;
            const float scale = output < w.rows ? ScaleAt(w, output, k) : 0.0f;
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              sums->v[m][o][v] += scale * part.v[m][o][v];
              part.v[m][o][v] = 0;
            }
          }
        }
      }
    }
    k = end;
  }
  if constexpr (sizeof(W) != 1) *sums = part;
}

// Calls body(row of the tile, output of the tile, m, o, v) for all values
// v[m][o][v] of the calling thread's TileSums.
template <typename Body>
__device__ inline void ForTileSums(Body body) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int o = 0; o < 4; ++o) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        body(TileRow() + m * 16 + lane / 4 + v / 2 * 8,
             TileOutput() + o * 8 + lane % 4 * 2 + v % 2, m, o, v);
      }
    }
  }
}

}  // namespace ring::cuda
