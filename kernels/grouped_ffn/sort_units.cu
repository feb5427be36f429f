// A counting sort that keeps the order of units within an expert. Blocks of
// 1,024 units count their experts; one block, a thread per expert, turns counts
// into places and tiles; the blocks of units look up where theirs go. A unit's
// rank in its block: units before it in its warp by comparing lanes, in earlier
// warps by a table of counts, [warps][experts] of 16 bits, at most 32 KiB of
// shared memory. Bound: launches and latency; 8 bytes a unit.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/expert_table.cuh"
#include "kernels/grouped_ffn/sort_units.h"

namespace ring::cuda {
namespace {

constexpr int kWarps = kUnitsPerBlock / kWarp;
constexpr int kPlanThreads = kMaxExperts;
constexpr int kBatch =
    32;  // counts that a thread of PlanTiles fetches at a time

// before[w][e]: units of expert e in the block's warps before w; the last row
// counts all. Returns the rank of this thread's unit among its expert's in the
// block, and sets *expert, -1 for none.
struct WarpCounts {
  uint16_t before[kWarps + 1][kMaxExperts];
};

__device__ int RankInBlock(const int32_t* experts, int64_t units,
                           int num_experts, WarpCounts* counts, int* expert) {
  const int64_t unit = int64_t{blockIdx.x} * kUnitsPerBlock + threadIdx.x;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x; i < kWarps * num_experts; i += kUnitsPerBlock) {
    counts->before[1 + i / num_experts][i % num_experts] = 0;
  }
  *expert = unit < units ? experts[unit] : -1;
  __syncthreads();
  const unsigned same = __match_any_sync(kAllLanes, *expert);
  const int in_warp = __popc(same & ((1u << lane) - 1));
  if (*expert >= 0 && in_warp == 0) {
    counts->before[1 + warp][*expert] = static_cast<uint16_t>(__popc(same));
  }
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += kUnitsPerBlock) {
    int sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      counts->before[w][e] = static_cast<uint16_t>(sum);
      sum += counts->before[w + 1][e];
    }
    counts->before[kWarps][e] = static_cast<uint16_t>(sum);
  }
  __syncthreads();
  return *expert < 0 ? 0 : counts->before[warp][*expert] + in_warp;
}

__global__ void __launch_bounds__(kUnitsPerBlock)
    CountUnits(const int32_t* experts, int64_t units, int num_experts,
               SortedUnits sorted) {
  __shared__ WarpCounts counts;
  int expert;
  RankInBlock(experts, units, num_experts, &counts, &expert);
  for (int e = threadIdx.x; e < num_experts; e += kUnitsPerBlock) {
    sorted.counts[int64_t{blockIdx.x} * num_experts + e] =
        counts.before[kWarps][e];
  }
}

// The sum of the values of the threads before this one; *total of all. `shared`
// has room for one value a warp and one more.
__device__ int SumBefore(int value, int* shared, int* total) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int sum = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int left = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= offset) sum += left;
  }
  if (lane == kWarp - 1) shared[warp] = sum;
  __syncthreads();
  int before = 0;
  *total = 0;
  for (int w = 0; w < kPlanThreads / kWarp; ++w) {
    if (w < warp) before += shared[w];
    *total += shared[w];
  }
  __syncthreads();
  return before + sum - value;
}

// counts[b][e] becomes the units of expert e in blocks before b.
__global__ void __launch_bounds__(kPlanThreads)
    PlanTiles(int64_t blocks, int num_experts, SortedUnits sorted) {
  __shared__ int shared[kPlanThreads / kWarp];
  const int e = threadIdx.x;
  int mine = 0;
  for (int64_t batch = 0; batch < blocks && e < num_experts; batch += kBatch) {
    // Loads before stores: the compiler cannot know that they do not meet.
    int count[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      count[i] =
          batch + i < blocks ? sorted.counts[(batch + i) * num_experts + e] : 0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (batch + i < blocks)
        sorted.counts[(batch + i) * num_experts + e] = mine;
      mine += count[i];
    }
  }
  int total = 0;
  const int first =
      SumBefore((mine + kRowAlign - 1) / kRowAlign * kRowAlign, shared, &total);
  const int tiles = (mine + kTileRows - 1) / kTileRows;
  const int first_tile = SumBefore(tiles, shared, &total);
  if (e == 0) *sorted.num_tiles = total;
  if (e >= num_experts) return;
  sorted.first[e] = first;
  for (int t = 0; t < tiles; ++t) {
    const int row = t * kTileRows;
    const int band = t / kMaxBand * kMaxBand;
    sorted.tiles[first_tile + t] = {
        e, first + row, min(kTileRows, mine - row),
        static_cast<int16_t>(t - band),
        static_cast<int16_t>(min(kMaxBand, tiles - band))};
  }
}

__global__ void __launch_bounds__(kUnitsPerBlock)
    PlaceUnits(const int32_t* experts, int64_t units, int num_experts,
               SortedUnits sorted) {
  __shared__ WarpCounts counts;
  const int64_t unit = int64_t{blockIdx.x} * kUnitsPerBlock + threadIdx.x;
  int expert;
  const int rank = RankInBlock(experts, units, num_experts, &counts, &expert);
  if (unit >= units) return;
  sorted.place[unit] =
      expert < 0
          ? -1
          : sorted.first[expert] + rank +
                sorted.counts[int64_t{blockIdx.x} * num_experts + expert];
}

}  // namespace

void SortUnits(const int32_t* experts, int64_t units, int num_experts,
               const SortedUnits& sorted, Stream* stream) {
  RING_CHECK_LE(num_experts, kMaxExperts);
  const unsigned blocks = Blocks(units, kUnitsPerBlock);
  CountUnits<<<blocks, kUnitsPerBlock, 0, stream->get()>>>(experts, units,
                                                           num_experts, sorted);
  CheckLaunch("CountUnits");
  PlanTiles<<<1, kPlanThreads, 0, stream->get()>>>(blocks, num_experts, sorted);
  CheckLaunch("PlanTiles");
  PlaceUnits<<<blocks, kUnitsPerBlock, 0, stream->get()>>>(experts, units,
                                                           num_experts, sorted);
  CheckLaunch("PlaceUnits");
}

}  // namespace ring::cuda
