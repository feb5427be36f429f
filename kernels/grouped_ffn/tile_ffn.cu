// Many rows: units are sorted by (slot, expert) on the device, and every run of
// units of one expert within a slot is cut into tiles of 64. A block takes one
// tile and 64 output columns. The down products of a slot are added to y before
// those of the next slot start, so y is summed in slot order without atomics.
// Weights are read once a slot; shared memory and bound as in tile_gemm.cuh.
//
// Scratch: order [slots * rows], first [top_k][experts + 1], tiles likewise.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/expert_table.cuh"
#include "kernels/grouped_ffn/ffn_kernels.cuh"
#include "kernels/linear/tile_gemm.cuh"

namespace ring::cuda {
namespace {

constexpr int kSortThreads = 512;
static_assert(kSortThreads >= kMaxExperts);

// The units of slot s, sorted by expert: order[s * rows + i] is a row;
// expert e has i in [first[e], first[e + 1]) and tiles
// [first_tile[e], first_tile[e + 1]).
struct Sorted {
  int32_t* order;       // [top_k, rows]
  int32_t* first;       // [top_k, kMaxExperts + 1]
  int32_t* first_tile;  // [top_k, kMaxExperts + 1]
};

// A block owns one slot, a thread one expert, which it looks for in all rows:
// rows keep their order within an expert.
__global__ void SortSlot(const int32_t* experts, int64_t rows, int top_k,
                         int num_experts, Sorted sorted) {
  __shared__ int32_t count[kMaxExperts];
  const int slot = blockIdx.x;
  const int e = threadIdx.x;
  int32_t* const first = sorted.first + slot * (kMaxExperts + 1);
  int32_t* const first_tile = sorted.first_tile + slot * (kMaxExperts + 1);
  int32_t mine = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t expert = experts == nullptr ? 0 : experts[row * top_k + slot];
    mine += expert == e;
  }
  count[e] = mine;
  __syncthreads();
  if (e == 0) {
    int32_t units = 0;
    int32_t tiles = 0;
    for (int i = 0; i < num_experts; ++i) {
      first[i] = units;
      first_tile[i] = tiles;
      units += count[i];
      tiles += (count[i] + kTile - 1) / kTile;
    }
    first[num_experts] = units;
    first_tile[num_experts] = tiles;
  }
  __syncthreads();
  if (e >= num_experts) return;
  int32_t* to = sorted.order + slot * rows + first[e];
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t expert = experts == nullptr ? 0 : experts[row * top_k + slot];
    if (expert == e) *to++ = static_cast<int32_t>(row);
  }
}

// One tile of the sorted units of a slot.
struct UnitTile {
  int expert;            // -1: there is no such tile
  const int32_t* order;  // rows of the tile
  int count;
};

__device__ UnitTile FindTile(const Sorted& sorted, int slot, int64_t rows,
                             int num_experts, int tile) {
  const int32_t* const first = sorted.first + slot * (kMaxExperts + 1);
  const int32_t* const first_tile =
      sorted.first_tile + slot * (kMaxExperts + 1);
  if (tile >= first_tile[num_experts]) return {-1, nullptr, 0};
  // The last expert whose first tile is not after this one.
  int low = 0;
  int high = num_experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_tile[middle] <= tile ? low : high) = middle;
  }
  const int begin = first[low] + (tile - first_tile[low]) * kTile;
  return {low, sorted.order + slot * rows + begin,
          min(kTile, first[low + 1] - begin)};
}

template <typename W>
__global__ void __launch_bounds__(kTileThreads)
    GateAndUpTiles(const __grid_constant__ ExpertTable gates,
                   const __grid_constant__ ExpertTable ups, Sorted sorted,
                   const BFloat16* x, int64_t rows, int top_k, int num_experts,
                   BFloat16* h) {
  const int slot = blockIdx.z;
  const UnitTile tile = FindTile(sorted, slot, rows, num_experts, blockIdx.y);
  if (tile.expert < 0) return;
  const int64_t n = int64_t{blockIdx.x} * kTile;
  const int64_t inter = gates.shape.rows;
  const auto x_row = [&](int i) -> const BFloat16* {
    return i < tile.count ? x + tile.order[i] * gates.shape.cols : nullptr;
  };
  TileSums gate;
  TileSums up;
  MultiplyTile<W>(gates.At(tile.expert), n, x_row, &gate);
  MultiplyTile<W>(ups.At(tile.expert), n, x_row, &up);
  ForTileSums([&](int i, int j, int m, int o, int v) {
    if (i >= tile.count || n + j >= inter) return;
    const int64_t unit = int64_t{tile.order[i]} * top_k + slot;
    h[unit * inter + n + j] =
        Narrow<BFloat16>(SwiGlu(gate.v[m][o][v], up.v[m][o][v]));
  });
}

template <typename W>
__global__ void __launch_bounds__(kTileThreads)
    DownTiles(const __grid_constant__ ExpertTable downs, Sorted sorted,
              const BFloat16* h, const float* weights, int64_t rows, int top_k,
              int slot, int num_experts, float* y) {
  const UnitTile tile = FindTile(sorted, slot, rows, num_experts, blockIdx.y);
  if (tile.expert < 0) return;
  const int64_t n = int64_t{blockIdx.x} * kTile;
  const int64_t hidden = downs.shape.rows;
  TileSums sums;
  MultiplyTile<W>(
      downs.At(tile.expert), n,
      [&](int i) -> const BFloat16* {
        if (i >= tile.count) return nullptr;
        return h + (int64_t{tile.order[i]} * top_k + slot) * downs.shape.cols;
      },
      &sums);
  ForTileSums([&](int i, int j, int m, int o, int v) {
    if (i >= tile.count || n + j >= hidden) return;
    const int64_t row = tile.order[i];
    const float weight =
        weights == nullptr ? 1.0f : weights[row * top_k + slot];
    y[row * hidden + n + j] += weight * sums.v[m][o][v];
  });
}

template <typename W>
void Launch(const FfnUnits& units, Stream* stream) {
  const int num_experts = static_cast<int>(units.matrices.size());
  const int64_t tables = int64_t{units.top_k} * (kMaxExperts + 1);
  Sorted sorted;
  sorted.order =
      stream->Scratch<int32_t>(units.rows * units.top_k + 2 * tables);
  sorted.first = sorted.order + units.rows * units.top_k;
  sorted.first_tile = sorted.first + tables;
  SortSlot<<<units.top_k, kSortThreads, 0, stream->get()>>>(
      units.experts, units.rows, units.top_k, num_experts, sorted);
  CheckLaunch("SortSlot");

  const ExpertTable gates =
      MakeExpertTable(units.matrices, &GatedMlpWeights::gate);
  const ExpertTable ups = MakeExpertTable(units.matrices, &GatedMlpWeights::up);
  const ExpertTable downs =
      MakeExpertTable(units.matrices, &GatedMlpWeights::down);
  // Every expert can leave one tile unfilled.
  const unsigned tiles =
      Blocks(units.rows, kTile) +
      static_cast<unsigned>(std::min<int64_t>(num_experts, units.rows));
  const dim3 in_grid(Blocks(gates.shape.rows, kTile), tiles, units.top_k);
  GateAndUpTiles<W><<<in_grid, kTileThreads, 0, stream->get()>>>(
      gates, ups, sorted, static_cast<const BFloat16*>(units.x), units.rows,
      units.top_k, num_experts, static_cast<BFloat16*>(units.h));
  CheckLaunch("GateAndUpTiles");
  if (!units.accumulate) {
    RING_CUDA_CHECK(cudaMemsetAsync(
        units.y, 0, units.rows * downs.shape.rows * sizeof(float),
        stream->get()));
  }
  const dim3 out_grid(Blocks(downs.shape.rows, kTile), tiles);
  for (int slot = 0; slot < units.top_k; ++slot) {
    DownTiles<W><<<out_grid, kTileThreads, 0, stream->get()>>>(
        downs, sorted, static_cast<const BFloat16*>(units.h), units.weights,
        units.rows, units.top_k, slot, num_experts, units.y);
    CheckLaunch("DownTiles");
  }
}

}  // namespace

bool TileFfnSupports(const FfnUnits& units) {
  const DType dtype = units.matrices[0].gate.dtype;
  return units.x_dtype == DType::kBFloat16 &&
         (dtype == DType::kBFloat16 || dtype == DType::kFloat8E4M3) &&
         units.matrices[0].gate.rows > 0;
}

void TileFfn(const FfnUnits& units, Stream* stream) {
  if (units.matrices[0].gate.dtype == DType::kBFloat16) {
    Launch<BFloat16>(units, stream);
  } else {
    Launch<Float8E4M3>(units, stream);
  }
}

}  // namespace ring::cuda
