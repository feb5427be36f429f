// Decode rows one at a time take one kernel, RouteFewRows: a block owns two
// experts, whose columns wait in shared memory (33 KiB, and 17 KiB for a row)
// when the row arrives; the last block to finish chooses. More rows take two
// kernels with the same sums in the same order. MultiplyRouter: a block owns 64
// experts, 128 columns and up to 64 rows and leaves x * norm_weight times the
// router, plus the squares of x, as one of hidden / 128 parts; 66 KiB of shared
// memory. ChooseExperts: a block owns a row, adds its parts in order, scales by
// 1 / RMS and chooses; 2 floats an expert and a group. Other rows: NormRows, a
// block a row, and the linear map (linear.cu) leave the logits whole. Bound:
// latency for few rows, fp32 arithmetic for many.
#include <algorithm>

#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/linear.h"
#include "kernels/moe_routing/moe_routing.h"

namespace ring::cuda {
namespace {

constexpr int kNormThreads = 256;
constexpr int kMaxDecodeRows = 256;  // of one launch

__global__ void NormRows(MoeRoutingArgs args) {
  __shared__ float shared[kNormThreads / kWarp];
  const int64_t hidden = args.router.cols;
  const int64_t row = blockIdx.x;
  const float* const x = static_cast<const float*>(args.x) + row * hidden;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < hidden; i += kNormThreads) {
    squares += x[i] * x[i];
  }
  const float scale = InverseRms(BlockSum(squares, shared), hidden, args.eps);
  for (int64_t i = threadIdx.x; i < hidden; i += kNormThreads) {
    args.normed[row * hidden + i] = x[i] * scale * args.norm_weight[i];
  }
}

// The tile of MultiplyRouter: 16 x 16 threads, each of 4 experts and kRowsEach
// rows that lie 16 apart.
constexpr int kPartColumns = 128;
constexpr int kTileExperts = 64;
constexpr int kSide = 16;
constexpr int kTileThreads = kSide * kSide;
constexpr int kExpertsEach = kTileExperts / kSide;
constexpr int kTilePitch = kPartColumns + 4;  // floats, free of bank conflicts
constexpr int kMaxRowsEach = 4;
constexpr int kMaxTileBytes = (kTileExperts + kSide * kMaxRowsEach) *
                              kTilePitch * static_cast<int>(sizeof(float));

// Parts of the rows of one launch.
struct RouterParts {
  float* logits;   // [parts, rows, num_experts]
  float* squares;  // [parts, rows]
  int parts;
};

// tile[i][j] = from[i * stride + j] for i < rows, j < columns, else 0, for the
// kRows rows and all columns of a part. All loads are on their way before the
// first is waited for. At least one row and one column.
template <typename T, int kRows>
__device__ __forceinline__ void LoadTile(const T* from, int64_t stride,
                                         int rows, int columns, float* tile) {
  constexpr int kRowsPerPass = kTileThreads / kPartColumns;
  constexpr int kPasses = kRows / kRowsPerPass;
  const int j = threadIdx.x % kPartColumns;
  const int first = threadIdx.x / kPartColumns;
  from += min(j, columns - 1);
  T values[kPasses];
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    values[p] = from[min(first + p * kRowsPerPass, rows - 1) * stride];
  }
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    const int i = first + p * kRowsPerPass;
    tile[i * kTilePitch + j] =
        i < rows && j < columns ? Widen(values[p]) : 0.0f;
  }
}

template <typename W, typename X, int kRowsEach>
__global__ void __launch_bounds__(kTileThreads)
    MultiplyRouter(MoeRoutingArgs args, RouterParts parts) {
  constexpr int kTileRows = kSide * kRowsEach;
  extern __shared__ __align__(16) float tiles[];
  float* const w_tile = tiles;
  float* const x_tile = tiles + kTileExperts * kTilePitch;
  const int part = blockIdx.x;
  const int first_expert = blockIdx.y * kTileExperts;
  const int first_row = blockIdx.z * kTileRows;
  const int64_t hidden = args.router.cols;
  const int64_t begin = int64_t{part} * kPartColumns;
  const int columns =
      static_cast<int>(min(int64_t{kPartColumns}, hidden - begin));
  const int rows = static_cast<int>(args.rows);
  cudaTriggerProgrammaticLaunchCompletion();
  LoadTile<W, kTileExperts>(static_cast<const W*>(args.router.data) +
                                first_expert * args.router.row_stride + begin,
                            args.router.row_stride,
                            args.num_experts - first_expert, columns, w_tile);
  cudaGridDependencySynchronize();
  LoadTile<X, kTileRows>(
      static_cast<const X*>(args.x) + first_row * hidden + begin, hidden,
      rows - first_row, columns, x_tile);
  __syncthreads();
  if (args.norm_weight != nullptr) {
    // A warp owns the rows w, w + 8, ...: first their squares, then the weight.
    const int lane = threadIdx.x % kWarp;
    for (int i = threadIdx.x / kWarp; i < kTileRows;
         i += kTileThreads / kWarp) {
      float squares = 0;
#pragma unroll
      for (int j = lane; j < kPartColumns; j += kWarp) {
        float& x = x_tile[i * kTilePitch + j];
        squares += x * x;
        x *= j < columns ? args.norm_weight[begin + j] : 0.0f;
      }
      squares = WarpSum(squares);
      if (lane == 0 && blockIdx.y == 0 && first_row + i < rows) {
        parts.squares[part * rows + first_row + i] = squares;
      }
    }
    __syncthreads();
  }
  // Thread (e, r): experts e, e + 16, ... and rows r, r + 16, ...
  const int e = threadIdx.x % kSide;
  const int r = threadIdx.x / kSide;
  float sums[kRowsEach][kExpertsEach] = {};
#pragma unroll 4
  for (int j = 0; j < kPartColumns; j += 4) {
    float4 w[kExpertsEach];
#pragma unroll
    for (int o = 0; o < kExpertsEach; ++o) {
      w[o] = *reinterpret_cast<const float4*>(w_tile +
                                              (e + o * kSide) * kTilePitch + j);
    }
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(
          x_tile + (r + i * kSide) * kTilePitch + j);
#pragma unroll
      for (int o = 0; o < kExpertsEach; ++o) {
        sums[i][o] += x.x * w[o].x;
        sums[i][o] += x.y * w[o].y;
        sums[i][o] += x.z * w[o].z;
        sums[i][o] += x.w * w[o].w;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    const int row = first_row + r + i * kSide;
#pragma unroll
    for (int o = 0; o < kExpertsEach; ++o) {
      const int expert = first_expert + e + o * kSide;
      if (row < rows && expert < args.num_experts) {
        parts.logits[(int64_t{part} * rows + row) * args.num_experts + expert] =
            sums[i][o];
      }
    }
  }
}

// Keys order like values, NaN lowest; equal values, -0 and +0 too, have equal
// keys, and none has the key 0.
__device__ uint32_t KeyOf(float value) {
  if (value != value) return 1;
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// What a lane holds of a list: element lane + 32 * k is at k.
constexpr int kMaxExperts = 512;
constexpr int kKeysEach = kMaxExperts / kWarp;

// The lowest index of the largest of the warp's keys; keys of 0 are no
// candidates, of which there has to be one. Takes it out.
template <int kKeys>
__device__ int TakeLargest(uint32_t (&keys)[kKeys]) {
  const int lane = threadIdx.x % kWarp;
  uint32_t mine = 0;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) mine = max(mine, keys[k]);
  const uint32_t largest = __reduce_max_sync(kAllLanes, mine);
  int index = kMaxExperts;
#pragma unroll
  for (int k = kKeys - 1; k >= 0; --k) {
    if (keys[k] == largest) index = lane + k * kWarp;
  }
  index = __reduce_min_sync(kAllLanes, index);
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (index == lane + k * kWarp) keys[k] = 0;
  }
  return index;
}

// The sum of the two largest of c[0..n), NaN aside, by a warp; in all lanes.
__device__ float SumOfTwoLargest(const float* c, int n) {
  float first = -INFINITY;
  float second = -INFINITY;
  const auto add = [&](float x) {
    if (x > first) {
      second = first;
      first = x;
    } else if (x > second) {
      second = x;
    }
  };
  for (int i = threadIdx.x % kWarp; i < n; i += kWarp) add(c[i]);
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float a = __shfl_xor_sync(kAllLanes, first, offset);
    const float b = __shfl_xor_sync(kAllLanes, second, offset);
    add(a);
    add(b);
  }
  return n == 1 ? first : first + second;
}

constexpr int kChooseThreads = 256;

// group[g] = the sum of the two largest of the group's c, by the whole block.
__device__ void SumGroups(const MoeRoutingArgs& args, const float* choice,
                          float* group) {
  const int width = args.num_experts / args.n_group;
  for (int g = threadIdx.x / kWarp; g < args.n_group;
       g += kChooseThreads / kWarp) {
    const float sum = SumOfTwoLargest(choice + g * width, width);
    if (threadIdx.x % kWarp == 0) group[g] = sum;
  }
}

// Chooses the experts of a row, by one warp. choice, score: [num_experts] c and
// p; group: [n_group] sums, and as much scratch.
template <int kKeys>
__device__ void ChooseForRow(const MoeRoutingArgs& args, int64_t row,
                             const float* choice, const float* score,
                             float* group, bool store) {
  const int lane = threadIdx.x % kWarp;
  const int width = args.num_experts / args.n_group;
  // How many groups come before group g; the first topk_group are open.
  float* const rank = group + args.n_group;
  for (int g = lane; g < args.n_group; g += kWarp) {
    const uint32_t mine = KeyOf(group[g]);
    int before = 0;
    for (int i = 0; i < args.n_group; ++i) {
      const uint32_t other = KeyOf(group[i]);
      before += other > mine || (other == mine && i < g) ? 1 : 0;
    }
    rank[g] = static_cast<float>(before);
  }
  __syncwarp();
  uint32_t keys[kKeys];
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    const int e = lane + k * kWarp;
    const bool candidate =
        e < args.num_experts && rank[e / width] < args.topk_group;
    keys[k] = candidate ? KeyOf(choice[e]) : 0;
  }
  float sum = 0;
  float my_score = 0;  // of slot `lane`
  int my_expert = 0;
#pragma unroll 1
  for (int slot = 0; slot < args.top_k; ++slot) {
    const int e = TakeLargest(keys);
    const float p = score[e];
    sum += p;
    if (slot == lane) {
      my_score = p;
      my_expert = e;
    }
  }
  const float scale =
      args.routed_scaling_factor / (args.norm_topk_prob ? sum + 1e-20f : 1.0f);
  if (!store || lane >= args.top_k) return;
  const int64_t at = row * args.top_k + lane;
  args.experts[at] = my_expert;
  args.weights[at] = my_score * scale;
  if (args.local == nullptr) return;
  const bool valid = args.row_valid == nullptr || args.row_valid[row] != 0;
  args.local[at] = valid ? args.to_local[my_expert] : -1;
}

// With parts.parts > 0 the logits are the scaled sums of the parts, else
// args.logits.
__global__ void __launch_bounds__(kChooseThreads)
    ChooseExperts(MoeRoutingArgs args, RouterParts parts) {
  extern __shared__ float shared[];
  __shared__ float inverse_rms;
  float* const choice = shared;                    // [num_experts] c
  float* const score = choice + args.num_experts;  // [num_experts] p
  float* const group = score + args.num_experts;   // [n_group]
  const int lane = threadIdx.x % kWarp;
  const int64_t row = blockIdx.x;
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (threadIdx.x < kWarp && parts.parts > 0) {
    float squares = 0;
    if (args.norm_weight != nullptr) {
      for (int p = lane; p < parts.parts; p += kWarp) {
        squares += parts.squares[p * args.rows + row];
      }
      squares = WarpSum(squares);
    }
    if (lane == 0) {
      inverse_rms = args.norm_weight == nullptr
                        ? 1.0f
                        : InverseRms(squares, args.router.cols, args.eps);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < args.num_experts; e += kChooseThreads) {
    float logit = 0;
    if (parts.parts > 0) {
#pragma unroll 16
      for (int p = 0; p < parts.parts; ++p) {
        logit += parts.logits[(p * args.rows + row) * args.num_experts + e];
      }
      logit *= inverse_rms;
    } else {
      logit = args.logits[row * args.num_experts + e];
    }
    score[e] = Sigmoid(logit);
    choice[e] = score[e] + (args.expert_bias ? args.expert_bias[e] : 0.0f);
  }
  __syncthreads();
  SumGroups(args, choice, group);
  __syncthreads();
  if (threadIdx.x < kWarp) {
    ChooseForRow<kKeysEach>(args, row, choice, score, group, /*store=*/true);
  }
}

// RouteFewRows: a block's experts, and the rows that it takes at a time.
constexpr int kFewRows = 1;  // with more, two kernels are faster
constexpr int kFewExperts = 2;
constexpr int kRowsAtOnce = 4;
constexpr int kMaxParts = 64;
static_assert(kFewExperts * kRowsAtOnce * kWarp == kChooseThreads);

struct FewRows {
  float* score;   // [rows, num_experts]
  float* choice;  // [rows, num_experts]
  unsigned* counter;
};

// Lays [columns] out as parts of kTilePitch, 4 columns at a time.
__device__ __forceinline__ float4* PlaceOf(float* tile, int column) {
  return reinterpret_cast<float4*>(tile + column / kPartColumns * kTilePitch +
                                   column % kPartColumns);
}

// Adds 1 and returns what was there. What the block stored before a barrier
// before this is seen by whoever counts later.
__device__ __forceinline__ unsigned CountArrival(unsigned* counter) {
  unsigned before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// Goes through everything once before it waits for the rows, on what lies there
// and without storing: the code, and where the data lies, are in the caches
// then. Rows are never read through L1, which would not see them change.
template <int kKeys>
__global__ void __launch_bounds__(kChooseThreads, kKeys == 8 ? 5 : 3)
    RouteFewRows(const __grid_constant__ MoeRoutingArgs args,
                 const __grid_constant__ FewRows few) {
  extern __shared__ __align__(16) float tiles[];
  __shared__ float part_sums[kRowsAtOnce][kFewExperts][kMaxParts];
  __shared__ float part_squares[kRowsAtOnce][kMaxParts];
  __shared__ bool is_last;
  const int hidden = static_cast<int>(args.router.cols);
  const int parts = hidden / kPartColumns;
  const int tile = parts * kTilePitch;
  float* const w_tile = tiles;                       // [kFewExperts]
  float* const x_tile = tiles + kFewExperts * tile;  // [kRowsAtOnce]
  const int rows = static_cast<int>(args.rows);
  const int first_expert = static_cast<int>(blockIdx.x) * kFewExperts;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int my_row = warp / kFewExperts;
  const int my_expert = warp % kFewExperts;
  cudaTriggerProgrammaticLaunchCompletion();
  for (int i = threadIdx.x * 4; i < kFewExperts * hidden;
       i += kChooseThreads * 4) {
    const int e = i / hidden;
    const float* const w = static_cast<const float*>(args.router.data) +
                           (first_expert + e) * args.router.row_stride;
    *PlaceOf(w_tile + e * tile, i - e * hidden) =
        *reinterpret_cast<const float4*>(w + i - e * hidden);
  }
#pragma unroll 1
  for (bool live = false;; live = true) {
    if (live) cudaGridDependencySynchronize();
#pragma unroll 1
    for (int first = 0; first < rows; first += kRowsAtOnce) {
      const int count = min(kRowsAtOnce, rows - first);
      __syncthreads();
#pragma unroll 1
      for (int r = 0; r < count; ++r) {
        const float* const x =
            static_cast<const float*>(args.x) + int64_t{first + r} * hidden;
#pragma unroll 4
        for (int i = threadIdx.x * 4; i < hidden; i += kChooseThreads * 4) {
          *PlaceOf(x_tile + r * tile, i) =
              __ldcg(reinterpret_cast<const float4*>(x + i));
        }
      }
      __syncthreads();
      // A warp owns every 8th part of the rows: squares, then the weight.
#pragma unroll 1
      for (int r = 0; r < count; ++r) {
#pragma unroll 4
        for (int part = warp; part < parts; part += kChooseThreads / kWarp) {
          float* const x = x_tile + r * tile + part * kTilePitch;
          float squares = 0;
#pragma unroll
          for (int j = lane; j < kPartColumns; j += kWarp) {
            squares += x[j] * x[j];
            x[j] *= args.norm_weight[part * kPartColumns + j];
          }
          squares = WarpSum(squares);
          if (lane == 0) part_squares[r][part] = squares;
        }
      }
      __syncthreads();
      if (my_row < count) {
        for (int part = lane; part < parts; part += kWarp) {
          const float* const w = w_tile + my_expert * tile + part * kTilePitch;
          const float* const x = x_tile + my_row * tile + part * kTilePitch;
          float sum = 0;
#pragma unroll 8
          for (int j = 0; j < kPartColumns; j += 4) {
            const float4 a = *reinterpret_cast<const float4*>(x + j);
            const float4 b = *reinterpret_cast<const float4*>(w + j);
            sum += a.x * b.x;
            sum += a.y * b.y;
            sum += a.z * b.z;
            sum += a.w * b.w;
          }
          part_sums[my_row][my_expert][part] = sum;
        }
        __syncwarp();
        float squares = 0;
        for (int part = lane; part < parts; part += kWarp) {
          squares += part_squares[my_row][part];
        }
        const float inverse =
            InverseRms(WarpSum(squares), args.router.cols, args.eps);
        float logit = 0;
#pragma unroll 16
        for (int part = 0; part < parts; ++part) {
          logit += part_sums[my_row][my_expert][part];
        }
        if (lane == 0) {
          const int e = first_expert + my_expert;
          const float score = Sigmoid(logit * inverse);
          const float choice =
              score + (args.expert_bias ? args.expert_bias[e] : 0.0f);
          const int at = (first + my_row) * args.num_experts + e;
          if (live) {
            few.score[at] = score;
            few.choice[at] = choice;
          }
        }
      }
    }
    // The last block to get here sees what all have stored.
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = !live || CountArrival(few.counter) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    // In place of the rows: 2 (num_experts + n_group) floats a row.
    float* const score = x_tile;
    float* const choice = score + rows * args.num_experts;
    float* const group = choice + rows * args.num_experts;
    if (live) {
      for (int i = threadIdx.x; i < rows * args.num_experts;
           i += kChooseThreads) {
        score[i] = __ldcg(few.score + i);
        choice[i] = __ldcg(few.choice + i);
      }
      if (threadIdx.x == 0) *few.counter = 0;
    }
    __syncthreads();
    for (int row = 0; row < rows; ++row) {
      SumGroups(args, choice + row * args.num_experts,
                group + row * 2 * args.n_group);
    }
    __syncthreads();
    if (warp < rows) {
      ChooseForRow<kKeys>(args, warp, choice + warp * args.num_experts,
                          score + warp * args.num_experts,
                          group + warp * 2 * args.n_group, live);
    }
    if (live) return;
    __syncthreads();
  }
}

// The rows [begin, end) of args.
MoeRoutingArgs RowsOf(const MoeRoutingArgs& args, int64_t begin, int64_t end) {
  MoeRoutingArgs part = args;
  part.rows = end - begin;
  part.x =
      static_cast<const char*>(args.x) +
      begin * args.router.cols * static_cast<int64_t>(SizeOf(args.x_dtype));
  part.normed = args.normed + begin * args.router.cols;
  part.logits = args.logits + begin * args.num_experts;
  part.experts = args.experts + begin * args.top_k;
  part.weights = args.weights + begin * args.top_k;
  if (args.local != nullptr) part.local = args.local + begin * args.top_k;
  if (args.row_valid != nullptr) part.row_valid = args.row_valid + begin;
  return part;
}

void Choose(const MoeRoutingArgs& args, const RouterParts& parts,
            Stream* stream) {
  const size_t shared = 2 * (args.num_experts + args.n_group) * sizeof(float);
  LaunchOverlapped(ChooseExperts, Blocks(args.rows, 1), kChooseThreads, shared,
                   stream, args, parts);
}

template <typename W, typename X, int kRowsEach>
void LaunchRouter(const MoeRoutingArgs& args, const RouterParts& parts,
                  Stream* stream) {
  constexpr int kTileRows = kSide * kRowsEach;
  const auto kernel = MultiplyRouter<W, X, kRowsEach>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxTileBytes));
  const dim3 grid(parts.parts, Blocks(args.num_experts, kTileExperts),
                  Blocks(args.rows, kTileRows));
  const size_t shared = (kTileExperts + kTileRows) * kTilePitch * sizeof(float);
  LaunchOverlapped(kernel, grid, kTileThreads, shared, stream, args, parts);
}

// Of the rows that a block takes at a time, without the experts.
int64_t FewRowsBytes(const MoeRoutingArgs& args) {
  return args.router.cols / kPartColumns * kTilePitch *
         std::min<int64_t>(args.rows, kRowsAtOnce) *
         static_cast<int64_t>(sizeof(float));
}

bool TakesFewRows(const MoeRoutingArgs& args) {
  const int64_t choose_bytes = args.rows * 2 *
                               (args.num_experts + args.n_group) *
                               static_cast<int64_t>(sizeof(float));
  return args.rows <= kFewRows && args.norm_weight != nullptr &&
         args.router.dtype == DType::kFloat32 &&
         args.num_experts % kFewExperts == 0 &&
         args.router.cols % kPartColumns == 0 && args.router.cols > 0 &&
         args.router.cols <= kMaxParts * kPartColumns &&
         args.router.row_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(args.router.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(args.x) % 16 == 0 &&
         choose_bytes <= FewRowsBytes(args);
}

template <int kKeys>
void LaunchFewRows(const MoeRoutingArgs& args, Stream* stream) {
  const auto kernel = RouteFewRows<kKeys>;
  const int64_t bytes = FewRowsBytes(args) +
                        args.router.cols / kPartColumns * kTilePitch *
                            kFewExperts * static_cast<int64_t>(sizeof(float));
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10));
  FewRows few;
  few.score = stream->Scratch<float>(2 * args.rows * args.num_experts);
  few.choice = few.score + args.rows * args.num_experts;
  few.counter = stream->counters();
  LaunchOverlapped(kernel, args.num_experts / kFewExperts, kChooseThreads,
                   bytes, stream, args, few);
}

// How many rows share a tile changes no sum.
void RouteDecodeRows(const MoeRoutingArgs& args, Stream* stream) {
  if (TakesFewRows(args)) {
    if (args.num_experts <= 8 * kWarp) {
      LaunchFewRows<8>(args, stream);
    } else {
      LaunchFewRows<kKeysEach>(args, stream);
    }
    return;
  }
  RouterParts parts;
  parts.parts = static_cast<int>(Blocks(args.router.cols, kPartColumns));
  const int64_t cells = parts.parts * args.rows;
  parts.logits = stream->Scratch<float>(cells * (args.num_experts + 1));
  parts.squares = parts.logits + cells * args.num_experts;
  WithFloatType(args.router.dtype, [&](auto w) {
    WithFloatType(args.x_dtype, [&](auto x) {
      if (args.rows <= kSide) {
        LaunchRouter<decltype(w), decltype(x), 1>(args, parts, stream);
      } else {
        LaunchRouter<decltype(w), decltype(x), kMaxRowsEach>(args, parts,
                                                             stream);
      }
    });
  });
  Choose(args, parts, stream);
}

void RoutePromptRows(const MoeRoutingArgs& args, Stream* stream) {
  LinearArgs linear;
  linear.x = args.x;
  linear.x_dtype = args.x_dtype;
  if (args.norm_weight != nullptr) {
    NormRows<<<Blocks(args.rows, 1), kNormThreads, 0, stream->get()>>>(args);
    CheckLaunch("NormRows");
    linear.x = args.normed;
  }
  linear.rows = args.rows;
  linear.weight = args.router;
  linear.y = args.logits;
  Linear(linear, stream);
  Choose(args, {}, stream);
}

}  // namespace

void MoeRouting(const MoeRoutingArgs& args, Stream* stream) {
  RING_CHECK_EQ(args.num_experts % args.n_group, 0);
  RING_CHECK_LE(args.topk_group, args.n_group);
  RING_CHECK_LE(args.top_k, args.num_experts / args.n_group * args.topk_group);
  RING_CHECK_EQ(args.router.rows, args.num_experts);
  RING_CHECK_LE(args.num_experts, kMaxExperts);
  RING_CHECK_LE(args.top_k, kWarp);
  RING_CHECK(args.norm_weight == nullptr || args.x_dtype == DType::kFloat32);
  for (int64_t row = 0; row < args.decode_rows; row += kMaxDecodeRows) {
    const int64_t end =
        std::min<int64_t>(row + kMaxDecodeRows, args.decode_rows);
    RouteDecodeRows(RowsOf(args, row, end), stream);
  }
  if (args.rows > args.decode_rows) {
    RoutePromptRows(RowsOf(args, args.decode_rows, args.rows), stream);
  }
}

}  // namespace ring::cuda
