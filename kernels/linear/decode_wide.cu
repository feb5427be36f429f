// Decode rows in larger numbers times block-FP8 weights, which are widened, not
// the rows narrowed.
//
// A block of 8 warps owns kRows weight rows and kTokens activation rows and
// walks the columns in chunks of 128, a scale block; both factors wait in a
// pipeline of shared memory, 16 bytes a copy. A warp owns kRowTiles tiles of 16
// weight rows and kGroups groups of 8 activation rows, the 16 and the 8 of
// mma.m16n8k16; the order of k within a chunk is that of fragment_stream.cuh. A
// chunk's products start from zero, take its scale, and are added to the sums.
// Bound: memory for up to about 64 rows, the tensor cores beyond. Shared
// memory: kStages of kRows of 192 and kTokens of 272 bytes, up to 197 KiB.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/linear/fragment_stream.cuh"
#include "kernels/linear/linear_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kColumns = static_cast<int>(kScaleBlock);  // of a chunk
constexpr int kWeightPitch = kColumns + 64;  // bytes, free of bank conflicts
constexpr int kTokenBytes = 2 * kColumns;
constexpr int kTokenPitch = kTokenBytes + 16;
constexpr int kUnit = kWideBytes;  // weights of a lane's load
constexpr int kPairs = kUnit / 2;
constexpr int kMaxSharedBytes = 227 << 10;

// How a block's tile is shared out. kRowWarps warps lie along the weight rows.
template <int kRowTiles, int kGroups, int kRowWarps>
struct WideTile {
  static constexpr int kRows = kRowTiles * kFragmentRows * kRowWarps;
  static constexpr int kTokens = kGroups * kGroupRows * (kWarps / kRowWarps);
  static constexpr int kStageBytes =
      kRows * kWeightPitch + kTokens * kTokenPitch;
  static constexpr int kStages = std::min(8, kMaxSharedBytes / kStageBytes);
};

__device__ __forceinline__ void CopyAsync(char* to, const char* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

// 16 weights as pairs of bf16 of the same value.
__device__ __forceinline__ void WidenWeights(const char* from,
                                             uint32_t (&pairs)[kPairs]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const __half2_raw narrow = __nv_cvt_fp8x2_to_halfraw2(
        static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (16 * (i % 2))),
        __NV_E4M3);
    const float2 wide = __half22float2(__half2(narrow));
    // Both values have at most 4 significant bits: the upper halves.
    pairs[i] =
        __byte_perm(__float_as_uint(wide.x), __float_as_uint(wide.y), 0x7632);
  }
}

template <int kRowTiles, int kGroups, int kRowWarps>
__global__ void __launch_bounds__(kThreads, 1)
    MultiplyWide(WeightMatrix w, RowBlock block, bool narrow) {
  using Tile = WideTile<kRowTiles, kGroups, kRowWarps>;
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t n0 = int64_t{blockIdx.x} * Tile::kRows;
  const int64_t token0 = int64_t{blockIdx.y} * Tile::kTokens;
  const int chunks = static_cast<int>(w.cols / kColumns);
  cudaTriggerProgrammaticLaunchCompletion();

  const auto copy_weights = [&](int chunk) {
    char* const to = shared + chunk % Tile::kStages * Tile::kStageBytes;
    constexpr int kUnits = kColumns / kWideBytes;
#pragma unroll
    for (int u = threadIdx.x; u < Tile::kRows * kUnits; u += kThreads) {
      const int row = u / kUnits;
      const int byte = u % kUnits * kWideBytes;
      const int64_t n = min(n0 + row, w.rows - 1);
      CopyAsync(to + row * kWeightPitch + byte,
                static_cast<const char*>(w.data) + n * w.row_stride +
                    chunk * kColumns + byte);
    }
  };
  const auto copy_tokens = [&](int chunk) {
    char* const to = shared + chunk % Tile::kStages * Tile::kStageBytes +
                     Tile::kRows * kWeightPitch;
    constexpr int kUnits = kTokenBytes / kWideBytes;
#pragma unroll
    for (int u = threadIdx.x; u < Tile::kTokens * kUnits; u += kThreads) {
      const int token = u / kUnits;
      const int byte = u % kUnits * kWideBytes;
      const int64_t row = min(token0 + token, block.rows - 1);
      CopyAsync(to + token * kTokenPitch + byte,
                static_cast<const char*>(block.x) + row * w.cols * 2 +
                    chunk * kTokenBytes + byte);
    }
  };
  const auto commit = [] {
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  constexpr int kAhead = Tile::kStages - 1;
  for (int c = 0; c < min(kAhead, chunks); ++c) copy_weights(c);
  cudaGridDependencySynchronize();
  for (int c = 0; c < kAhead; ++c) {
    if (c < chunks) copy_tokens(c);
    commit();
  }

  // This lane's rows of the weights and where their scales are.
  const int tile_row = warp % kRowWarps * kRowTiles * kFragmentRows + lane / 4;
  const int tile_token = warp / kRowWarps * kGroups * kGroupRows;
  const float* scales[kRowTiles][2];
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t n =
          min(n0 + tile_row + t * kFragmentRows + half * 8, w.rows - 1);
      scales[t][half] = w.scales + w.row_scale[n] * w.scale_cols +
                        w.scale_col_offset / kScaleBlock;
    }
  }
  float sums[kRowTiles][kGroups][4] = {};
  for (int c = 0; c < chunks; ++c) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kAhead - 1) : "memory");
    __syncthreads();
    if (c + kAhead < chunks) {
      copy_weights(c + kAhead);
      copy_tokens(c + kAhead);
    }
    commit();
    float scale[kRowTiles][2];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      scale[t][0] = scales[t][0][c];
      scale[t][1] = scales[t][1][c];
    }
    const char* const stage = shared + c % Tile::kStages * Tile::kStageBytes;
    const char* const weights =
        stage + tile_row * kWeightPitch + lane % 4 * kWideBytes;
    const char* const tokens = stage + Tile::kRows * kWeightPitch +
                               (tile_token + lane / 4) * kTokenPitch +
                               lane % 4 * kUnit * 2;
    float part[kRowTiles][kGroups][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr int kHalfBytes = kColumns / 2;
      uint32_t low[kRowTiles][kPairs];
      uint32_t high[kRowTiles][kPairs];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        const char* const from =
            weights + t * kFragmentRows * kWeightPitch + half * kHalfBytes;
        WidenWeights(from, low[t]);
        WidenWeights(from + 8 * kWeightPitch, high[t]);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        uint32_t b[kPairs];
#pragma unroll
        for (int i = 0; i < kPairs / 4; ++i) {
          const uint4 raw = *reinterpret_cast<const uint4*>(
              tokens + g * kGroupRows * kTokenPitch + half * kTokenBytes / 2 +
              16 * i);
          b[4 * i] = raw.x;
          b[4 * i + 1] = raw.y;
          b[4 * i + 2] = raw.z;
          b[4 * i + 3] = raw.w;
        }
#pragma unroll
        for (int i = 0; i < kPairs; i += 2) {
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            MultiplyFragment(
                {low[t][i], high[t][i], low[t][i + 1], high[t][i + 1]},
                {b[i], b[i + 1]}, part[t][g]);
          }
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          sums[t][g][v] = fmaf(scale[t][v / 2], part[t][g][v], sums[t][g][v]);
        }
      }
    }
  }

#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int64_t n = n0 + tile_row + t * kFragmentRows + v / 2 * 8;
        const int64_t token =
            token0 + tile_token + g * kGroupRows + lane % 4 * 2 + v % 2;
        if (n >= w.rows || token >= block.rows) continue;
        const int64_t at = token * w.rows + n;
        if (narrow) {
          static_cast<BFloat16*>(block.y)[at] = Narrow<BFloat16>(sums[t][g][v]);
        } else {
          static_cast<float*>(block.y)[at] = sums[t][g][v];
        }
      }
    }
  }
}

template <int kRowTiles, int kGroups, int kRowWarps>
void Launch(const LinearArgs& args, const RowBlock& block, Stream* stream) {
  using Tile = WideTile<kRowTiles, kGroups, kRowWarps>;
  const auto kernel = MultiplyWide<kRowTiles, kGroups, kRowWarps>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes));
  const dim3 grid(Blocks(args.weight.rows, Tile::kRows),
                  Blocks(block.rows, Tile::kTokens));
  LaunchDependent(kernel, grid, kThreads, Tile::kStages * Tile::kStageBytes,
                  stream, args.weight, block, args.y_dtype == DType::kBFloat16);
}

int NumMultiprocessors() {
  int device = 0;
  int value = 0;
  RING_CUDA_CHECK(cudaGetDevice(&device));
  RING_CUDA_CHECK(
      cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
  return value;
}

// The number of weight rows of a block: many share the activations' traffic,
// few keep all multiprocessors busy.
int ChooseRows(int64_t weight_rows, int64_t token_tiles) {
  static const int multiprocessors = NumMultiprocessors();
  int best = 0;
  double least = 0;
  for (const auto& [rows, cost] : {std::pair{128, 1.0}, {64, 1.1}, {32, 1.4}}) {
    const int64_t blocks = (weight_rows + rows - 1) / rows * token_tiles;
    const int64_t waves = (blocks + multiprocessors - 1) / multiprocessors;
    const double total = static_cast<double>(waves * rows) * cost;
    if (best == 0 || total < least) {
      best = rows;
      least = total;
    }
  }
  return best;
}

void LaunchWide(const LinearArgs& args, const RowBlock& block, Stream* stream) {
  constexpr int64_t kFewRows = 32;
  constexpr int64_t kManyRows = 128;
  const bool few = block.rows <= kFewRows;
  const int rows = ChooseRows(
      args.weight.rows, few ? 1 : (block.rows + kManyRows - 1) / kManyRows);
  if (few) {
    if (rows == 128) return Launch<2, 2, 4>(args, block, stream);
    if (rows == 64) return Launch<2, 1, 2>(args, block, stream);
    return Launch<1, 1, 2>(args, block, stream);
  }
  if (rows == 128) return Launch<2, 8, 4>(args, block, stream);
  if (rows == 64) return Launch<2, 4, 2>(args, block, stream);
  return Launch<2, 2, 1>(args, block, stream);
}

}  // namespace

bool WideTakes(const LinearArgs& args) {
  const WeightMatrix& w = args.weight;
  return args.x_dtype == DType::kBFloat16 && w.dtype == DType::kFloat8E4M3 &&
         AllowsWideLoads(w) && w.cols % kColumns == 0 &&
         w.scale_col_offset % kColumns == 0 &&
         reinterpret_cast<uintptr_t>(args.x) % kWideBytes == 0;
}

void StreamManyRows(const LinearArgs& args, int64_t begin, int64_t end,
                    Stream* stream) {
  LaunchWide(args, RowsOf(args, begin, end), stream);
}

}  // namespace ring::cuda
