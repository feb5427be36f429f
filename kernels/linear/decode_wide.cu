// Decode rows in larger numbers times block-FP8 weights, which are widened, not
// the rows narrowed.
//
// wgmma with the weights as its 64 rows, in registers, and up to 256 activation
// rows as its columns, in shared memory (wide_product.cuh). A block is two
// warpgroups that multiply and a third of which one thread feeds a ring of
// stages through the copy engine; a stage is a chunk of 128 columns, a scale
// block. Large matrices: a warpgroup
// owns 64 weight rows and takes all chunks (kSplit off). Small ones: both own
// the same 64 rows and take the chunks in turn, so that more blocks share the
// weights; their sums meet in shared memory. Two blocks form a cluster where
// there are many activation rows: each fetches half of these for both.
//
// Shared memory: stages of 8 or 16 KiB of weights and 256 bytes an activation
// row, up to 8 of them, 216 KiB at most. Bound: memory up to about 64 rows, the
// tensor cores beyond.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/linear/device_matrix.cuh"
#include "kernels/linear/hopper.cuh"
#include "kernels/linear/linear_kernels.cuh"
#include "kernels/linear/tensor_map.cuh"
#include "kernels/linear/wide_product.cuh"

namespace ring::cuda {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kGroups = 2;  // that multiply
constexpr int kThreads = (kGroups + 1) * kWarpgroup;
// Of 65,536 / kThreads at start, in units of 8.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr int kRows = 64;  // of a warpgroup
constexpr int kMaxTokens = 256;
constexpr int kMaxStages = 8;
constexpr int kSharedBytes = 217 << 10;

struct WideArgs {
  CUtensorMap x;     // [rows, cols]
  CUtensorMap w[2];  // [rows, cols]
  const float* scales[2];
  const int32_t* row_scale[2];
  int64_t scale_cols[2];
  void* y[2];
  int outputs[2];    // rows of w
  int first_blocks;  // of w[0]
  int tokens;
  int chunks;
};

template <int kTokens, bool kSplit, int kCluster>
struct WideTile {
  static constexpr int kBlockRows = kSplit ? kRows : kGroups * kRows;
  static constexpr int kWeightBytes = kBlockRows * kChunkColumns;
  static constexpr int kTokenBytes = kTokens * kChunkColumns * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kStages =
      std::min(kMaxStages, kSharedBytes / kStageBytes);
  // Those of one launch of wgmma, and how many of these.
  static constexpr int kProductTokens = std::min(kTokens, 128);
  static constexpr int kProducts = kTokens / kProductTokens;
  static constexpr int kSums = kProductTokens / 2;  // a thread's, of a product
};

struct Barriers {
  uint64_t full[kMaxStages];
  uint64_t empty[kMaxStages];
};

// One thread: fills the stages, those of weights before it waits for the rows.
template <typename Tile, int kTokens, int kCluster>
__device__ void Produce(const WideArgs& args, char* stages, Barriers* barriers,
                        int matrix, int row) {
  constexpr int kShare = kTokens / kCluster;
  const uint32_t rank = kCluster > 1 ? ClusterRank() : 0;
  const auto copy_weights = [&](int chunk) {
    const StageAt<Tile::kStages> at(chunk);
    ArriveExpecting(&barriers->full[at.slot], Tile::kStageBytes);
    CopyTile(&args.w[matrix], chunk * kChunkColumns, row,
             stages + at.slot * Tile::kStageBytes, &barriers->full[at.slot]);
  };
  const auto copy_tokens = [&](int chunk) {
    const StageAt<Tile::kStages> at(chunk);
    char* const to = stages + at.slot * Tile::kStageBytes + Tile::kWeightBytes;
#pragma unroll
    for (int slab = 0; slab < kChunkSlabs; ++slab) {
      char* const part = to + (slab * kTokens + rank * kShare) * kSlabRowBytes;
      const int column = chunk * kChunkColumns + slab * kSlabColumns;
      if constexpr (kCluster > 1) {
        CopyTileToCluster(&args.x, column, static_cast<int>(rank) * kShare,
                          part, &barriers->full[at.slot], (1 << kCluster) - 1);
      } else {
        CopyTile(&args.x, column, 0, part, &barriers->full[at.slot]);
      }
    }
  };
  const int early = min(args.chunks, Tile::kStages);
  for (int chunk = 0; chunk < early; ++chunk) copy_weights(chunk);
  cudaGridDependencySynchronize();
  for (int chunk = 0; chunk < early; ++chunk) copy_tokens(chunk);
  for (int chunk = early; chunk < args.chunks; ++chunk) {
    const StageAt<Tile::kStages> at(chunk);
    WaitBarrier(&barriers->empty[at.slot], at.parity ^ 1);
    copy_weights(chunk);
    copy_tokens(chunk);
  }
}

template <int kTokens, bool kSplit, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    MultiplyWide(const __grid_constant__ WideArgs args, bool narrow) {
  using Tile = WideTile<kTokens, kSplit, kCluster>;
  extern __shared__ char memory[];
  __shared__ Barriers barriers;
  char* const stages = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  const int matrix = static_cast<int>(blockIdx.x) >= args.first_blocks ? 1 : 0;
  const int first_row =
      (static_cast<int>(blockIdx.x) - (matrix == 0 ? 0 : args.first_blocks)) *
      Tile::kBlockRows;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      InitBarrier(&barriers.full[s], 1);
      // The warps of whoever reads a stage.
      InitBarrier(&barriers.empty[s],
                  kCluster * (kSplit ? 1 : kGroups) * (kWarpgroup / kWarp));
    }
    FenceBarrierInit();
  }
  if constexpr (kCluster > 1) {
    ClusterBarrier();
  } else {
    __syncthreads();
  }
  cudaTriggerProgrammaticLaunchCompletion();
  // Known to the compiler to be the same in a warp.
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / kWarp, 0);
  const int lane = threadIdx.x % kWarp;
  const int group = warp / (kWarpgroup / kWarp);
  if (group == kGroups) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x == kGroups * kWarpgroup) {
      Produce<Tile, kTokens, kCluster>(args, stages, &barriers, matrix,
                                       first_row);
    }
    __syncwarp();
    if constexpr (kCluster > 1) ClusterBarrier();
    return;
  }
  TakeRegisters<kConsumerRegisters>();

  // This lane's two rows, 8 apart, and where their weights and scales are.
  const int tile_row = (kSplit ? 0 : group * kRows) +
                       warp % (kWarpgroup / kWarp) * 16 + lane / 4;
  const float* scales[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int n = min(first_row + tile_row + 8 * h, args.outputs[matrix] - 1);
    scales[h] = args.scales[matrix] +
                args.row_scale[matrix][n] * args.scale_cols[matrix];
  }
  const int swizzle = tile_row % 8;
  const uint32_t token_tiles = SharedAddress(stages) + Tile::kWeightBytes;
  float sums[Tile::kProducts][Tile::kSums];
#pragma unroll
  for (int p = 0; p < Tile::kProducts; ++p) {
#pragma unroll
    for (int i = 0; i < Tile::kSums; ++i) sums[p][i] = 0;
  }
  constexpr int kStride = kSplit ? kGroups : 1;
  RowScale low, high;
  float next[2] = {};
  const int first_chunk = kSplit ? group : 0;
  if (first_chunk < args.chunks) {
    next[0] = scales[0][first_chunk];
    next[1] = scales[1][first_chunk];
  }
  for (int chunk = first_chunk; chunk < args.chunks; chunk += kStride) {
    const StageAt<Tile::kStages> at(chunk);
    low.Enter(next[0]);
    high.Enter(next[1]);
    if (chunk + kStride < args.chunks) {
      next[0] = scales[0][chunk + kStride];
      next[1] = scales[1][chunk + kStride];
    }
    Rescale(low.ratio, high.ratio, sums);
    WaitBarrier(&barriers.full[at.slot], at.parity);
    const char* const weights = stages + at.slot * Tile::kStageBytes +
                                tile_row * kChunkColumns + lane % 4 * 2;
    const uint32_t tokens = token_tiles + at.slot * Tile::kStageBytes;
    MultiplyChunk<(kTokens > 128)>(weights, weights + 8 * kChunkColumns,
                                   swizzle, tokens, kTokens * kSlabRowBytes,
                                   low.factor, high.factor, true, sums);
    if (lane < kCluster) {
      if constexpr (kCluster > 1) {
        ArriveAt(&barriers.empty[at.slot], lane);
      } else {
        ArriveAt(&barriers.empty[at.slot], 0);
      }
    }
  }
  Rescale(low.sums, high.sums, sums);
  if constexpr (kSplit) {
    // All stages have been read: the odd chunks' sums take their place.
    asm volatile("bar.sync 1, %0;" ::"n"(kGroups * kWarpgroup) : "memory");
    float* const meet =
        reinterpret_cast<float*>(stages) + threadIdx.x % kWarpgroup;
#pragma unroll
    for (int p = 0; p < Tile::kProducts; ++p) {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) {
        if (group == 1) meet[(p * Tile::kSums + i) * kWarpgroup] = sums[p][i];
      }
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kGroups * kWarpgroup) : "memory");
#pragma unroll
    for (int p = 0; p < Tile::kProducts; ++p) {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) {
        if (group == 0) sums[p][i] += meet[(p * Tile::kSums + i) * kWarpgroup];
      }
    }
  }
  if (!kSplit || group == 0) {
    const int outputs = args.outputs[matrix];
#pragma unroll
    for (int p = 0; p < Tile::kProducts; ++p) {
#pragma unroll
      for (int i = 0; i < Tile::kSums; ++i) {
        const int n = first_row + tile_row + i / 2 % 2 * 8;
        const int token =
            p * Tile::kProductTokens + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (n >= outputs || token >= args.tokens) continue;
        const int64_t to = int64_t{token} * outputs + n;
        if (narrow) {
          static_cast<BFloat16*>(args.y[matrix])[to] =
              Narrow<BFloat16>(sums[p][i]);
        } else {
          static_cast<float*>(args.y[matrix])[to] = sums[p][i];
        }
      }
    }
  }
  // A block must not end while its peer may still write to its memory.
  if constexpr (kCluster > 1) ClusterBarrier();
}

template <int kTokens, bool kSplit, int kCluster>
void Launch(const LinearArgs& linear, const RowBlock& block, Stream* stream) {
  using Tile = WideTile<kTokens, kSplit, kCluster>;
  WideArgs args = {};
  const WeightMatrix& first = linear.weight;
  args.x = MakeMap({block.x, DType::kBFloat16, first.cols, block.rows,
                    first.cols, kTokens / kCluster});
  const RowBlock also =
      RowsOf(AlsoOf(linear), 0, 0);  // its y alone: see the caller
  unsigned blocks[2] = {};
  for (int m = 0; m < 2; ++m) {
    const WeightMatrix& w = m == 0 ? linear.weight : linear.also;
    if (w.rows == 0) continue;
    args.w[m] = MakeMap(
        {w.data, w.dtype, w.cols, w.rows, w.row_stride, Tile::kBlockRows});
    args.scales[m] = w.scales + w.scale_col_offset / kScaleBlock;
    args.row_scale[m] = w.row_scale;
    args.scale_cols[m] = w.scale_cols;
    args.outputs[m] = static_cast<int>(w.rows);
    blocks[m] = Blocks(w.rows, Tile::kBlockRows);
  }
  args.y[0] = block.y;
  args.y[1] = also.y;
  // Blocks of a cluster belong to one matrix.
  args.first_blocks =
      static_cast<int>((blocks[0] + kCluster - 1) / kCluster * kCluster);
  args.tokens = static_cast<int>(block.rows);
  args.chunks = static_cast<int>(first.cols / kChunkColumns);
  const unsigned grid = static_cast<unsigned>(args.first_blocks) +
                        (blocks[1] + kCluster - 1) / kCluster * kCluster;

  const auto kernel = MultiplyWide<kTokens, kSplit, kCluster>;
  RING_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSharedBytes + 1024));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = kCluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = Tile::kStages * Tile::kStageBytes + 1024;
  config.stream = stream->get();
  config.attrs = attributes;
  config.numAttrs = kCluster > 1 ? 2 : 1;
  RING_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args,
                                     linear.y_dtype == DType::kBFloat16));
}

// Few blocks of two row tiles would leave half of the multiprocessors idle.
bool Splits(const LinearArgs& args) {
  constexpr int64_t kFewRows = 66 * kGroups * kRows;
  return args.weight.rows + args.also.rows <= kFewRows;
}

template <int kTokens, int kCluster>
void LaunchTokens(const LinearArgs& args, const RowBlock& block,
                  Stream* stream) {
  if (Splits(args)) {
    Launch<kTokens, true, kCluster>(args, block, stream);
  } else {
    Launch<kTokens, false, kCluster>(args, block, stream);
  }
}

void LaunchWide(const LinearArgs& args, const RowBlock& block, Stream* stream) {
  if (block.rows <= 16) return LaunchTokens<16, 1>(args, block, stream);
  if (block.rows <= 32) return LaunchTokens<32, 1>(args, block, stream);
  if (block.rows <= 64) return LaunchTokens<64, 2>(args, block, stream);
  if (block.rows <= 128) return LaunchTokens<128, 2>(args, block, stream);
  LaunchTokens<256, 2>(args, block, stream);
}

}  // namespace

bool WideTakes(const LinearArgs& args) {
  const auto takes = [&](const WeightMatrix& w) {
    return w.rows == 0 ||
           (w.dtype == DType::kFloat8E4M3 && w.cols == args.weight.cols &&
            AllowsWideLoads(w) && w.cols % kChunkColumns == 0 &&
            w.rows < (int64_t{1} << 30) &&
            w.scale_col_offset % kChunkColumns == 0);
  };
  return args.x_dtype == DType::kBFloat16 && args.weight.rows > 0 &&
         args.weight.cols > 0 && takes(args.weight) && takes(args.also) &&
         reinterpret_cast<uintptr_t>(args.x) % kWideBytes == 0;
}

void StreamManyRows(const LinearArgs& args, int64_t begin, int64_t end,
                    Stream* stream) {
  for (int64_t row = begin; row < end; row += kMaxTokens) {
    const int64_t count = std::min<int64_t>(kMaxTokens, end - row);
    LinearArgs part = args;
    part.also_y =
        args.also.rows > 0 ? RowsOf(AlsoOf(args), row, row + count).y : nullptr;
    LaunchWide(part, RowsOf(args, row, row + count), stream);
  }
}

}  // namespace ring::cuda
