// y = x w^T with TMA and wgmma.
//
// A cluster of two blocks owns a tile of 128 rows and walks the columns in
// steps of 128 bytes; each block computes 128 (e4m3) or 256 (bf16) outputs. The
// rows of x are loaded once for both: each block fetches half of them and
// multicasts it. A tile of outputs comes in two halves, from two places of w:
// for SwiGLU the same outputs of gate and up, else neighbouring ones.
//
// Two warpgroups of a block multiply 64 rows each. Of the third, one thread
// feeds a ring of stages (x tile, w tile) through the copy engine and another
// looks up the next tile. A warpgroup without rows skips its products.
//
// Blocks are persistent. A cluster that is done takes the next tile of an order
// in which a band of up to kMaxBand tiles of rows, of one matrix, goes through
// all outputs before the next band: the tiles in flight are always neighbours
// in this order, so that the factors they share are read from memory once and
// stay in L2 meanwhile. (With tiles dealt out beforehand, clusters that meet
// short tiles run ahead and w is read again for almost every tile of rows.)
// Which cluster computes a tile changes nothing in its result.
//
// Shared memory: e4m3 6 stages of 32 KiB, bf16 4 stages of 48 KiB.
// Bound: tensor cores; with few rows a matrix, the bandwidth to read w.
#include "kernels/linear/tensor_gemm.h"

#include <algorithm>

#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/tensor_gemm_feed.cuh"
#include "kernels/linear/tensor_gemm_store.cuh"
#include "kernels/linear/tensor_map.cuh"

namespace ring::cuda {
namespace tensor_gemm {
namespace {

// Passes the stages of a tile on.
template <typename T>
__device__ void SkipRows(const KernelArgs& args, Shared<T>* shared,
                         Ring<kStages<T>>* ring) {
  for (int step = 0; step < args.steps; ++step, ring->Next()) {
    WaitBarrier(&shared->full[ring->slot], ring->parity);
    Release(shared, ring->slot);
  }
}

// sums = the products of a tile for 64 rows of bf16 and 256 outputs.
__device__ void MultiplyRows(const KernelArgs& args, Shared<BFloat16>* shared,
                             int warpgroup, Ring<kStages<BFloat16>>* ring,
                             float (&sums)[128]) {
  const uint32_t x_tiles = TileDescriptor(
      SharedAddress(shared->x[0] + warpgroup * kConsumerRows * kStepBytes));
  const uint32_t w_tiles = TileDescriptor(SharedAddress(shared->w[0]));
  int previous = 0;
#pragma unroll
  for (float& sum : sums) sum = 0;
  for (int step = 0; step < args.steps; ++step, ring->Next()) {
    const int s = ring->slot;
    WaitBarrier(&shared->full[s], ring->parity);
    const uint32_t x = x_tiles + s * (sizeof(shared->x[0]) >> 4);
    const uint32_t w = w_tiles + s * (sizeof(shared->w[0]) >> 4);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < kStepBytes / 32; ++k) {
      MultiplyBf16(sums, x + k * kDescriptorStep, w + k * kDescriptorStep);
    }
    CommitProducts();
    // The products of the step before are done: its stage is free.
    WaitProducts<1>();
    if (step > 0) Release(shared, previous);
    previous = s;
  }
  WaitProducts<0>();
  PinRegisters(sums);
  Release(shared, previous);
}

// The scales of one step: of the thread's two rows and of the two halves of the
// outputs.
struct StepScales {
  float x[2];
  float w[2];
};

// The next tile that has rows for the warpgroup; others are skipped.
template <typename T>
__device__ Tile NextOwnTile(const KernelArgs& args, Shared<T>* shared,
                            int warpgroup, Ring<kStages<T>>* ring,
                            Ring<kTakenTiles>* taken) {
  while (true) {
    const Tile tile = NextTile(shared, kAllLanes, taken);
    if (tile.rows == 0 || tile.rows > warpgroup * kConsumerRows) return tile;
    SkipRows(args, shared, ring);
  }
}

// Two warpgroups of each block, for bf16.
template <typename Y, bool kSwiGlu>
__device__ void Consume(const KernelArgs& args, Shared<BFloat16>* shared,
                        int warpgroup, uint32_t /*rank*/) {
  constexpr int kGroups = kTileOutputs<BFloat16> / 8;
  Ring<kStages<BFloat16>> ring;
  Ring<kTakenTiles> taken;
  while (true) {
    const Tile tile = NextOwnTile(args, shared, warpgroup, &ring, &taken);
    if (tile.rows == 0) break;
    float sums[kTileOutputs<BFloat16> / 2];
    MultiplyRows(args, shared, warpgroup, &ring, sums);
    const Place place = PlaceIn(tile, warpgroup);
    Y* const y = static_cast<Y*>(args.y);
    if constexpr (kSwiGlu) {
      ApplySwiGlu(sums);
      StoreRows<kGroups / 2>(args, place, tile.output[0], sums, y);
    } else {
      StoreRows<kGroups>(args, place, tile.output[0], sums, y);
    }
  }
}

// Two warpgroups of each block, for e4m3. The products of two steps are under
// way at a time, one in each half of `part`: while those of one step are scaled
// and added to the sums, the other's run. The first step of a tile starts
// before the tile before is stored.
template <typename Y, bool kSwiGlu>
__device__ void Consume(const KernelArgs& args, Shared<Float8E4M3>* shared,
                        int warpgroup, uint32_t rank) {
  Ring<kStages<Float8E4M3>> ring;
  Ring<kTakenTiles> taken;
  Tile tile = NextOwnTile(args, shared, warpgroup, &ring, &taken);

  const uint32_t x_tiles = TileDescriptor(
      SharedAddress(shared->x[0] + warpgroup * kConsumerRows * kStepBytes));
  const uint32_t w_tiles = TileDescriptor(SharedAddress(shared->w[0]));
  const float* x_scales;
  int second_row;  // from the scales of a thread's first row to its second's
  const float* w_scales[2];
  const auto find_scales = [&] {
    const Place place = PlaceIn(tile, warpgroup);
    // Rows past the end are dropped later.
    x_scales =
        args.x_scales + min(place.row[0], args.x_rows - 1) * args.scale_stride;
    second_row = place.row[1] < args.x_rows
                     ? 8 * static_cast<int>(args.scale_stride)
                     : 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const WeightScales& ws = args.w_scales[h];
      w_scales[h] = ws.scales + tile.matrix * ws.scales_stride +
                    tile.scale_row[h] * ws.scale_cols + ws.first_col;
    }
  };
  // Begins the products of the next step and fetches its scales.
  const auto start = [&](float(&part)[64], StepScales* scales) {
    scales->x[0] = x_scales[0];
    scales->x[1] = x_scales[second_row];
    ++x_scales;
    scales->w[0] = *w_scales[0]++;
    scales->w[1] = *w_scales[1]++;
    WaitBarrier(&shared->full[ring.slot], ring.parity);
    const uint32_t x = x_tiles + ring.slot * (sizeof(shared->x[0]) >> 4);
    const uint32_t w = w_tiles + ring.slot * (sizeof(shared->w[0]) >> 4);
    PinRegisters(part);
    FenceProducts();
#pragma unroll
    for (int i = 0; i < kStepBytes / 32; ++i) {
      MultiplyE4M3(part, x + i * kDescriptorStep, w + i * kDescriptorStep,
                   i > 0);
    }
    CommitProducts();
    ring.Next();
  };
  float sums[64];
  int finished = 0;  // the stage of the step that is added next
  const auto add = [&](float(&part)[64], const StepScales& scales) {
    PinRegisters(part);
    Release(shared, finished);
    finished = finished + 1 == kStages<Float8E4M3> ? 0 : finished + 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale[2] = {scales.x[0] * scales.w[half],
                              scales.x[1] * scales.w[half]};
#pragma unroll
      for (int v = half * 32; v < half * 32 + 32; ++v) {
        sums[v] += scale[v / 2 % 2] * part[v];
      }
    }
  };
  const auto store = [&](const Tile& done, int turn) {
    const Place place = PlaceIn(done, warpgroup);
    if constexpr (kSwiGlu) {
      ApplySwiGlu(sums);
      StoreQuantised(args, shared, warpgroup, rank, turn, place, done.output[0],
                     sums);
    } else {
      StoreRows<kTileOutputs<Float8E4M3> / 8>(args, place, done.output[0], sums,
                                              static_cast<Y*>(args.y));
    }
  };

  Tile done;
  int turn = 0;
  for (; tile.rows > 0; ++turn) {
    float even[64];
    float odd[64];
    StepScales even_scales;
    StepScales odd_scales;
    find_scales();
    finished = ring.slot;
    start(even, &even_scales);
    if (turn > 0) store(done, turn - 1);
#pragma unroll
    for (float& sum : sums) sum = 0;
    int left = args.steps;  // with the one started
    for (; left > 2; left -= 2) {
      start(odd, &odd_scales);
      WaitProducts<1>();
      add(even, even_scales);
      start(even, &even_scales);
      WaitProducts<1>();
      add(odd, odd_scales);
    }
    if (left == 2) {
      start(odd, &odd_scales);
      WaitProducts<1>();
      add(even, even_scales);
      WaitProducts<0>();
      add(odd, odd_scales);
    } else {
      WaitProducts<0>();
      add(even, even_scales);
    }
    done = tile;
    tile = NextOwnTile(args, shared, warpgroup, &ring, &taken);
  }
  if (turn > 0) store(done, turn - 1);
}

template <typename T, typename Y, bool kSwiGlu>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    MultiplyTiles(const __grid_constant__ KernelArgs args) {
  extern __shared__ uint8_t memory[];
  // The same address in both blocks: dynamic memory starts alike in each.
  Shared<T>* const shared = reinterpret_cast<Shared<T>*>(
      memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  const uint32_t rank = ClusterRank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages<T>; ++s) {
      InitBarrier(&shared->full[s], 1);
      InitBarrier(&shared->empty[s],
                  kCluster * kConsumers * kWarpgroup / kWarp);
    }
    for (int c = 0; c < kConsumers; ++c) {
      for (int p = 0; p < 2; ++p) InitBarrier(&shared->peer_max_ready[c][p], 1);
    }
    for (int t = 0; t < kTakenTiles; ++t) {
      InitBarrier(&shared->next_ready[t], 1);
      // The warps of the consumers, the producer and the announcer.
      InitBarrier(&shared->next_free[t],
                  kCluster * (kConsumers * kWarpgroup / kWarp + 2));
    }
    FenceBarrierInit();
  }
  ClusterBarrier();
  if (threadIdx.x >= kConsumers * kWarpgroup) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x == kConsumers * kWarpgroup) {
      Produce(args, shared, rank);
    } else if (threadIdx.x == kConsumers * kWarpgroup + kWarp) {
      Announce<T, kSwiGlu>(args, shared, rank);
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    // Known to the compiler to be the same in a warp.
    const int warpgroup = __shfl_sync(kAllLanes, threadIdx.x / kWarpgroup, 0);
    Consume<Y, kSwiGlu>(args, shared, warpgroup, rank);
  }
  // A block must not end while its peer may still write to its memory.
  ClusterBarrier();
}

// ---- Launching.

static_assert(kStepBytes == kMapRowBytes);

void SetHalf(const MatrixGroup& group, int box_rows, int half,
             KernelArgs* args) {
  const WeightMatrix& w = group.first;
  MapArgs map = {w.data, w.dtype, w.cols, w.rows, w.row_stride, box_rows};
  map.matrices = group.count;
  // A single matrix has no stride, but the map wants one.
  map.matrix_stride =
      group.count > 1 ? group.data_stride
                      : w.row_stride * static_cast<int64_t>(SizeOf(w.dtype));
  args->w[half] = MakeMap(map);
  args->w_scales[half] = {w.scales,
                          w.row_scale,
                          group.scales_stride,
                          group.row_scale_stride,
                          w.scale_cols,
                          w.scale_col_offset / kScaleBlock};
}

unsigned NumMultiprocessors() {
  static const int count = [] {
    int device = 0;
    int value = 0;
    RING_CUDA_CHECK(cudaGetDevice(&device));
    RING_CUDA_CHECK(
        cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
    return value;
  }();
  return static_cast<unsigned>(count);
}

template <typename T, typename Y, bool kSwiGlu>
void Launch(const TensorGemmArgs& gemm, Stream* stream) {
  const WeightMatrix& w = gemm.w.first;
  constexpr int kOutputs =  // of y, by a cluster
      kCluster * kTileOutputs<T> / (kSwiGlu ? 2 : 1);
  KernelArgs args;
  args.x = MakeMap(
      {gemm.x, w.dtype, w.cols, gemm.x_rows, w.cols, kTileRows / kCluster});
  SetHalf(gemm.w, kTileOutputs<T> / 2, 0, &args);
  SetHalf(kSwiGlu ? *gemm.up : gemm.w, kTileOutputs<T> / 2, 1, &args);
  args.x_scales = gemm.x_scales;
  args.scale_stride = ScaleStride(w.cols);
  args.tiles = gemm.tiles;
  args.num_tiles = gemm.num_tiles;
  args.x_rows = gemm.x_rows;
  args.steps = static_cast<int>(w.cols / kStepColumns<T>);
  args.output_tiles = static_cast<int>(Blocks(w.rows, kOutputs));
  args.outputs = w.rows;
  args.y = gemm.y;
  args.y_scales = gemm.y_scales;
  args.y_scale_stride = ScaleStride(w.rows);
  args.accumulate = gemm.accumulate;
  args.counter = gemm.counter;
  RING_CUDA_CHECK(
      cudaMemsetAsync(gemm.counter, 0, sizeof(int32_t), stream->get()));
  RING_CHECK_LE(int64_t{Blocks(gemm.x_rows, kRowAlign)} * args.output_tiles,
                int64_t{0x7fffffff});

  constexpr int kSharedBytes = sizeof(Shared<T>) + 1024;
  const auto kernel = MultiplyTiles<T, Y, kSwiGlu>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<NumMultiprocessors() / kCluster * kCluster, kThreads, kSharedBytes,
           stream->get()>>>(args);
  CheckLaunch("MultiplyTiles");
}

template <typename T>
void LaunchFor(const TensorGemmArgs& args, Stream* stream) {
  if (args.up != nullptr) {
    Launch<T, T, true>(args, stream);
  } else if (args.y_dtype == DType::kFloat32) {
    Launch<T, float, false>(args, stream);
  } else {
    RING_CHECK(!args.accumulate);
    Launch<T, BFloat16, false>(args, stream);
  }
}

}  // namespace
}  // namespace tensor_gemm

bool TensorGemmTakes(const WeightMatrix& w) {
  const bool e4m3 = w.dtype == DType::kFloat8E4M3;
  return (e4m3 || w.dtype == DType::kBFloat16) && !w.empty() &&
         w.rows % kScaleBlock == 0 && w.cols % kScaleBlock == 0 &&
         w.row_stride % 16 == 0 &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0 &&
         (!e4m3 || (w.scale_col_offset % kScaleBlock == 0 &&
                    w.scale_row_run % kRowAlign == 0));
}

bool PrefersTensorGemm(const WeightMatrix& w) {
  constexpr int64_t kMinElements = int64_t{1} << 18;
  return TensorGemmTakes(w) && w.rows * w.cols >= kMinElements;
}

void TensorGemm(const TensorGemmArgs& args, Stream* stream) {
  RING_CHECK(TensorGemmTakes(args.w.first));
  RING_CHECK(args.up == nullptr || TensorGemmTakes(args.up->first));
  if (args.x_rows == 0) return;
  if (args.w.first.dtype == DType::kFloat8E4M3) {
    tensor_gemm::LaunchFor<Float8E4M3>(args, stream);
  } else {
    tensor_gemm::LaunchFor<BFloat16>(args, stream);
  }
}

}  // namespace ring::cuda
