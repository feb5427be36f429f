// What a block of TensorGemm is given and how tiles reach its shared memory:
// the kernel's arguments, the order of tiles, and the thread that feeds the
// ring of stages. tensor_gemm.cu explains the whole.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/cuda_math.cuh"
#include "kernels/linear/hopper.cuh"
#include "kernels/linear/tensor_gemm.h"

namespace ring::cuda::tensor_gemm {

inline constexpr int kCluster = 2;
inline constexpr int kStepBytes = 128;
inline constexpr int kWarpgroup = 128;
inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
inline constexpr int kConsumerRows = kTileRows / kConsumers;
static_assert(kConsumerRows == kRowAlign);
// Of 65,536 / kThreads at start, in units of 8.
inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;
// The tile that consumers work on, and the one that the producer is at.
inline constexpr int kTakenTiles = 2;

template <typename T>
inline constexpr bool kIsE4M3 = sizeof(T) == 1;
template <typename T>
inline constexpr int kTileOutputs = kIsE4M3<T> ? 128 : 256;
template <typename T>
inline constexpr int kStages = kIsE4M3<T> ? 6 : 4;
template <typename T>
inline constexpr int kStepColumns = kStepBytes / static_cast<int>(sizeof(T));

// Scales of one half of a block's outputs.
struct WeightScales {
  const float* scales;
  const int32_t* row_scale;
  int64_t scales_stride;
  int64_t row_scale_stride;
  int64_t scale_cols;
  int64_t first_col;
};

struct KernelArgs {
  CUtensorMap x;     // [x_rows, cols]
  CUtensorMap w[2];  // [matrices, rows, cols], by half
  const float* x_scales;
  int64_t scale_stride;
  WeightScales w_scales[2];
  const RowTile* tiles;
  const int32_t* num_tiles;
  int64_t x_rows;
  int steps;         // of kStepColumns
  int output_tiles;  // of a cluster
  int64_t outputs;   // columns of y
  void* y;
  float* y_scales;
  int64_t y_scale_stride;
  bool accumulate;
  int32_t* counter;  // tiles taken by all clusters
};

// What a block computes at a time.
struct Tile {
  int32_t matrix;
  int32_t row;   // the first; 64 rows of it for each consumer
  int32_t rows;  // 0: there are no more tiles
  // By half of the block's outputs: the first, and its row of scales.
  int32_t output[2];
  int32_t scale_row[2];
};

inline constexpr int kTileWords = sizeof(Tile) / sizeof(uint32_t);
struct TileWords {
  uint32_t words[kTileWords];
};

template <typename T>
struct alignas(1024) Shared {
  uint8_t x[kStages<T>][kTileRows * kStepBytes];
  uint8_t w[kStages<T>][kTileOutputs<T> * kStepBytes];
  // By warpgroup and parity of the tile: the largest |h| of a row's outputs in
  // the other block.
  float peer_max[kConsumers][2][kConsumerRows];
  uint64_t peer_max_ready[kConsumers][2];
  uint64_t full[kStages<T>];
  uint64_t empty[kStages<T>];
  // Tiles that the cluster has taken, announced by its first block.
  Tile next_tile[kTakenTiles];
  uint64_t next_ready[kTakenTiles];
  uint64_t next_free[kTakenTiles];  // in the first block only
};

__device__ inline RowTile RowTileAt(const KernelArgs& args, int num_row_tiles,
                                    int index) {
  if (args.tiles != nullptr) {
    const int4 raw = *reinterpret_cast<const int4*>(args.tiles + index);
    return *reinterpret_cast<const RowTile*>(&raw);
  }
  const int row = index * kTileRows;
  const int band = index / kMaxBand * kMaxBand;
  return {0, row,
          static_cast<int32_t>(min(int64_t{kTileRows}, args.x_rows - row)),
          static_cast<int16_t>(index - band),
          static_cast<int16_t>(min(kMaxBand, num_row_tiles - band))};
}

// First outputs of the two halves of a block, and the columns of y that they
// become: with SwiGLU both halves make one column each.
template <typename T, bool kSwiGlu>
__device__ inline int OutputBegin(int output_tile, uint32_t rank, int half) {
  constexpr int kHalf = kTileOutputs<T> / 2;
  const int block = output_tile * kCluster + static_cast<int>(rank);
  return kSwiGlu ? block * kHalf : (block * 2 + half) * kHalf;
}

// The part of tile `index` that the block `rank` computes.
template <typename T, bool kSwiGlu>
__device__ inline Tile TileAt(const KernelArgs& args, int num_row_tiles,
                              int index, uint32_t rank) {
  Tile tile = {};
  const int any = index / args.output_tiles;  // a row tile of the band
  if (any >= num_row_tiles) return tile;
  const RowTile of_band = RowTileAt(args, num_row_tiles, any);
  const int band = any - of_band.in_band;
  const int in_band = index - band * args.output_tiles;
  const RowTile rows =
      RowTileAt(args, num_row_tiles, band + in_band % of_band.band_tiles);
  tile.matrix = rows.matrix;
  tile.row = rows.row;
  tile.rows = rows.rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    tile.output[half] =
        OutputBegin<T, kSwiGlu>(in_band / of_band.band_tiles, rank, half);
    if constexpr (kIsE4M3<T>) {
      const WeightScales& ws = args.w_scales[half];
      // Outputs past the end are dropped later.
      const int output =
          min(tile.output[half], static_cast<int>(args.outputs) - 1);
      tile.scale_row[half] =
          ws.row_scale[rows.matrix * ws.row_scale_stride + output];
    }
  }
  return tile;
}

// Position in a ring of kSlots slots. Its parity is that of the barriers'
// phase.
template <int kSlots>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void Next() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The announced tile, for the `lanes` of a warp that call this together.
template <typename T>
__device__ inline Tile NextTile(Shared<T>* shared, unsigned lanes,
                                Ring<kTakenTiles>* at) {
  WaitBarrier(&shared->next_ready[at->slot], at->parity);
  const Tile tile = shared->next_tile[at->slot];
  __syncwarp(lanes);
  if (threadIdx.x % kWarp == 0) ArriveAt(&shared->next_free[at->slot], 0);
  at->Next();
  return tile;
}

// One thread of each block. That of the first block takes tiles for the cluster
// and looks up what they are, while the tiles before are being computed.
template <typename T, bool kSwiGlu>
__device__ inline void Announce(const KernelArgs& args, Shared<T>* shared,
                                uint32_t rank) {
  const int num_row_tiles =
      args.num_tiles != nullptr
          ? *args.num_tiles
          : static_cast<int>((args.x_rows + kTileRows - 1) / kTileRows);
  Ring<kTakenTiles> taken;
  bool more = true;
  while (more) {
    uint64_t* const ready = &shared->next_ready[taken.slot];
    ArriveExpecting(ready, sizeof(Tile));
    if (rank == 0) {
      WaitBarrier(&shared->next_free[taken.slot], taken.parity ^ 1);
      const int index = atomicAdd(args.counter, 1);
      // All loads before the first store, which would hold them up.
      TileWords part[kCluster];
#pragma unroll
      for (int to = 0; to < kCluster; ++to) {
        part[to] = std::bit_cast<TileWords>(
            TileAt<T, kSwiGlu>(args, num_row_tiles, index, to));
      }
      uint32_t* const slot =
          reinterpret_cast<uint32_t*>(&shared->next_tile[taken.slot]);
#pragma unroll
      for (int to = 0; to < kCluster; ++to) {
#pragma unroll
        for (int w = 0; w < kTileWords; ++w) {
          StoreToPeer(slot + w, part[to].words[w], ready, to);
        }
      }
    }
    more = NextTile(shared, /*lanes=*/1, &taken).rows > 0;
  }
}

// One thread of each block: fills the stages of its tiles.
template <typename T>
__device__ inline void Produce(const KernelArgs& args, Shared<T>* shared,
                               uint32_t rank) {
  constexpr int kHalfBytes = kTileOutputs<T> / 2 * kStepBytes;
  constexpr int kShareRows = kTileRows / kCluster;
  PrefetchMap(&args.x);
  PrefetchMap(&args.w[0]);
  PrefetchMap(&args.w[1]);
  Ring<kStages<T>> ring;
  Ring<kTakenTiles> taken;
  while (true) {
    const Tile tile = NextTile(shared, /*lanes=*/1, &taken);
    if (tile.rows == 0) break;
    const int row = tile.row + static_cast<int>(rank) * kShareRows;
    for (int step = 0; step < args.steps; ++step, ring.Next()) {
      const int s = ring.slot;
      const int column = step * kStepColumns<T>;
      WaitBarrier(&shared->empty[s], ring.parity ^ 1);
      ArriveExpecting(&shared->full[s],
                      kTileRows * kStepBytes + 2 * kHalfBytes);
      CopyTileToCluster(&args.x, column, row,
                        shared->x[s] + rank * kShareRows * kStepBytes,
                        &shared->full[s], (1 << kCluster) - 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        CopyTile(&args.w[half], column, tile.output[half], tile.matrix,
                 shared->w[s] + half * kHalfBytes, &shared->full[s]);
      }
    }
  }
}

// Tells the producers of all blocks of the cluster that this warp is done with
// a stage.
template <typename T>
__device__ inline void Release(Shared<T>* shared, int stage) {
  if (threadIdx.x % kWarp < kCluster) {
    ArriveAt(&shared->empty[stage], threadIdx.x % kWarp);
  }
}

}  // namespace ring::cuda::tensor_gemm
