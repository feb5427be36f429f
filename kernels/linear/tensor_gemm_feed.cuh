// What a block of TensorGemm is given and how tiles reach its shared memory:
// the kernel's arguments, the order of tiles, and the thread that feeds the
// ring of stages. tensor_gemm.cu explains the whole.
#pragma once

#include <algorithm>

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
inline constexpr int kProducerRegisters = 24;
inline constexpr int kConsumerRegisters = 240;
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
  int32_t next_tile[kTakenTiles];
  uint64_t next_ready[kTakenTiles];
  uint64_t next_free[kTakenTiles];  // in the first block only
};

// Rows and outputs that a cluster computes at a time.
struct Tile {
  RowTile rows;
  int output_tile;
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

__device__ inline Tile TileAt(const KernelArgs& args, int num_row_tiles,
                              int index) {
  const int any = index / args.output_tiles;  // a row tile of the band
  const RowTile of_band = RowTileAt(args, num_row_tiles, any);
  const int band = any - of_band.in_band;
  const int in_band = index - band * args.output_tiles;
  Tile tile;
  tile.output_tile = in_band / of_band.band_tiles;
  tile.rows =
      RowTileAt(args, num_row_tiles, band + in_band % of_band.band_tiles);
  return tile;
}

// First outputs of the two halves of a block, and the columns of y that they
// become: with SwiGLU both halves make one column each.
template <typename T, bool kSwiGlu>
__device__ inline int OutputBegin(const Tile& tile, uint32_t rank, int half) {
  constexpr int kHalf = kTileOutputs<T> / 2;
  const int block = tile.output_tile * kCluster + static_cast<int>(rank);
  return kSwiGlu ? block * kHalf : (block * 2 + half) * kHalf;
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

// Takes a tile for the cluster. Called by the producers of all its blocks.
template <typename T>
__device__ inline void AnnounceTile(const KernelArgs& args, Shared<T>* shared,
                                    uint32_t rank,
                                    const Ring<kTakenTiles>& at) {
  ArriveExpecting(&shared->next_ready[at.slot], sizeof(int32_t));
  if (rank != 0) return;
  WaitBarrier(&shared->next_free[at.slot], at.parity ^ 1);
  const int32_t tile = atomicAdd(args.counter, 1);
  for (int to = 0; to < kCluster; ++to) {
    StoreToPeer(&shared->next_tile[at.slot], static_cast<uint32_t>(tile),
                &shared->next_ready[at.slot], to);
  }
}

// The announced tile, for the `lanes` of a warp that call this together.
template <typename T>
__device__ inline int NextTile(Shared<T>* shared, unsigned lanes,
                               Ring<kTakenTiles>* at) {
  WaitBarrier(&shared->next_ready[at->slot], at->parity);
  const int tile = shared->next_tile[at->slot];
  __syncwarp(lanes);
  if (threadIdx.x % kWarp == 0) ArriveAt(&shared->next_free[at->slot], 0);
  at->Next();
  return tile;
}

// One thread of each block.
template <typename T, bool kSwiGlu>
__device__ inline void Produce(const KernelArgs& args, Shared<T>* shared,
                               uint32_t rank, int num_row_tiles) {
  constexpr int kHalfBytes = kTileOutputs<T> / 2 * kStepBytes;
  constexpr int kShareRows = kTileRows / kCluster;
  PrefetchMap(&args.x);
  PrefetchMap(&args.w[0]);
  PrefetchMap(&args.w[1]);
  Ring<kStages<T>> ring;
  Ring<kTakenTiles> taken;
  const int num_tiles = num_row_tiles * args.output_tiles;
  AnnounceTile(args, shared, rank, taken);
  while (true) {
    const int index = NextTile(shared, /*lanes=*/1, &taken);
    if (index >= num_tiles) break;
    AnnounceTile(args, shared, rank, taken);
    const Tile tile = TileAt(args, num_row_tiles, index);
    const int row = tile.rows.row + static_cast<int>(rank) * kShareRows;
    const int output[2] = {OutputBegin<T, kSwiGlu>(tile, rank, 0),
                           OutputBegin<T, kSwiGlu>(tile, rank, 1)};
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
        CopyTile(&args.w[half], column, output[half], tile.rows.matrix,
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
