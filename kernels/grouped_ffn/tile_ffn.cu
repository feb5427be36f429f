// Many rows of bf16. With experts: the units are sorted by expert, their rows
// copied into that order (as e4m3 where the weights are), gate and up make h,
// down makes one bf16 row a unit, and those of a row are summed in the order of
// its slots. With one matrix for all rows, x and y are used as they are.
//
// The products are TensorGemm's where it suits the matrices; otherwise blocks
// of tile_gemm.cuh, one per 64 rows and 64 outputs. Copies and the sum: a
// thread per 8 columns of a row. Bound: products FLOP, copies and the sum
// bandwidth.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/expert_table.cuh"
#include "kernels/grouped_ffn/ffn_kernels.cuh"
#include "kernels/grouped_ffn/matrix_group.h"
#include "kernels/grouped_ffn/prompt_workspace.h"
#include "kernels/linear/tensor_gemm.h"
#include "kernels/linear/tile_gemm.cuh"

namespace ring::cuda {
namespace {

constexpr int kCopyThreads = 256;
constexpr int kSlots = 8;  // that CombineRows fetches at a time
static_assert(kTileRows == 2 * kTile && kRowAlign == kTile);

// ---- Rows in the order of experts.

// Copies row r to place[r * top_k + j] for all slots j. kUnit: columns of a
// thread.
template <int kUnit>
__global__ void __launch_bounds__(kCopyThreads)
    CopyRows(const BFloat16* x, int64_t rows, int64_t cols, int top_k,
             const int32_t* place, BFloat16* to) {
  struct alignas(kUnit * sizeof(BFloat16)) Columns {
    BFloat16 values[kUnit];
  };
  const int64_t units = cols / kUnit;
  const int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x;
  const int64_t row = i / units;
  if (row >= rows) return;
  const int64_t unit = i % units;
  const Columns columns = reinterpret_cast<const Columns*>(x)[i];
  for (int j = 0; j < top_k; ++j) {
    const int64_t p = place[row * top_k + j];
    if (p >= 0) reinterpret_cast<Columns*>(to)[p * units + unit] = columns;
  }
}

// y[r] = sum over j with a place of weights[r][j] * parts[place[r][j]].
template <int kUnit>
__global__ void __launch_bounds__(kCopyThreads)
    CombineRows(const BFloat16* parts, const int32_t* place,
                const float* weights, int64_t rows, int64_t cols, int top_k,
                float* y) {
  const int64_t units = cols / kUnit;
  const int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x;
  const int64_t row = i / units;
  if (row >= rows) return;
  const int64_t column = i % units * kUnit;
  float sum[kUnit] = {};
  for (int first = 0; first < top_k; first += kSlots) {
    // All loads are under way before the first is used. A slot without a place
    // reads another row and drops it.
    float part[kSlots][kUnit];
    bool present[kSlots];
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      const int64_t p = first + j < top_k ? place[row * top_k + first + j] : -1;
      present[j] = p >= 0;
      Load(parts + (present[j] ? p : 0) * cols + column, part[j]);
    }
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      if (!present[j]) continue;
      const float weight = weights[row * top_k + first + j];
#pragma unroll
      for (int c = 0; c < kUnit; ++c) sum[c] += weight * part[j][c];
    }
  }
  float* const to = y + row * cols + column;
  if constexpr (kUnit % 4 == 0) {
#pragma unroll
    for (int c = 0; c < kUnit; c += 4) {
      *reinterpret_cast<float4*>(to + c) =
          make_float4(sum[c], sum[c + 1], sum[c + 2], sum[c + 3]);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kUnit; ++c) to[c] = sum[c];
  }
}

// Calls body(unit) with the columns that a thread takes.
template <typename Body>
void WithUnit(int64_t cols, Body body) {
  if (cols % 8 == 0) {
    body(std::integral_constant<int, 8>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

// ---- Products of any matrices, in tiles of 64 rows.

// Rows `row` .. row + count - 1 use matrix `expert`; count may not be positive.
struct TileOfRows {
  int expert;
  int64_t row;
  int count;
};

// The rows of all products: those of `tiles`, or, if that is null, all `rows`.
struct RowsByExpert {
  const RowTile* tiles;
  const int32_t* num_tiles;
  int64_t rows;

  __device__ TileOfRows At(int index) const {
    if (tiles == nullptr) {
      const int64_t row = int64_t{index} * kTile;
      return {0, row, static_cast<int>(min(int64_t{kTile}, rows - row))};
    }
    if (index / 2 >= *num_tiles) return {0, 0, 0};
    const RowTile tile = tiles[index / 2];
    const int begin = index % 2 * kTile;
    return {tile.matrix, tile.row + begin, min(kTile, tile.rows - begin)};
  }
};

template <typename W>
__global__ void __launch_bounds__(kTileThreads)
    GateAndUpTiles(const __grid_constant__ ExpertTable gates,
                   const __grid_constant__ ExpertTable ups, RowsByExpert rows,
                   const BFloat16* x, BFloat16* h) {
  const TileOfRows tile = rows.At(blockIdx.y);
  if (tile.count <= 0) return;
  const int64_t n = int64_t{blockIdx.x} * kTile;
  const int64_t inter = gates.shape.rows;
  const auto x_row = [&](int i) -> const BFloat16* {
    return i < tile.count ? x + (tile.row + i) * gates.shape.cols : nullptr;
  };
  TileSums gate;
  TileSums up;
  MultiplyTile<W>(gates.At(tile.expert), n, x_row, &gate);
  MultiplyTile<W>(ups.At(tile.expert), n, x_row, &up);
  ForTileSums([&](int i, int j, int m, int o, int v) {
    if (i >= tile.count || n + j >= inter) return;
    h[(tile.row + i) * inter + n + j] =
        Narrow<BFloat16>(SwiGlu(gate.v[m][o][v], up.v[m][o][v]));
  });
}

template <typename W, typename Y>
__global__ void __launch_bounds__(kTileThreads)
    DownTiles(const __grid_constant__ ExpertTable downs, RowsByExpert rows,
              const BFloat16* h, bool accumulate, Y* y) {
  const TileOfRows tile = rows.At(blockIdx.y);
  if (tile.count <= 0) return;
  const int64_t n = int64_t{blockIdx.x} * kTile;
  const int64_t hidden = downs.shape.rows;
  TileSums sums;
  MultiplyTile<W>(
      downs.At(tile.expert), n,
      [&](int i) -> const BFloat16* {
        return i < tile.count ? h + (tile.row + i) * downs.shape.cols : nullptr;
      },
      &sums);
  ForTileSums([&](int i, int j, int m, int o, int v) {
    if (i >= tile.count || n + j >= hidden) return;
    Y* const at = &y[(tile.row + i) * hidden + n + j];
    *at = Narrow<Y>(sums.v[m][o][v] + (accumulate ? Widen(*at) : 0.0f));
  });
}

// ---- The whole block.

// Where the steps find and leave their rows. e4m3 weights of TensorGemm: x and
// h are e4m3 with scales. With tiles y is bf16, else fp32.
struct Rows {
  int64_t rows;
  const void* x;
  float* x_scales;
  void* h;
  float* h_scales;
  void* y;
  bool accumulate;
  const SortedUnits* sorted;  // null: all rows use one matrix
  int64_t max_tiles;
  int32_t* counter;
};

struct ExpertGroups {
  MatrixGroup gate, up, down;
};

// False if some matrices do not suit TensorGemm.
bool GroupExperts(absl::Span<const GatedMlpWeights> experts,
                  ExpertGroups* groups) {
  return MakeMatrixGroup(experts, &GatedMlpWeights::gate, &groups->gate) &&
         MakeMatrixGroup(experts, &GatedMlpWeights::up, &groups->up) &&
         MakeMatrixGroup(experts, &GatedMlpWeights::down, &groups->down) &&
         PrefersTensorGemm(groups->gate.first) &&
         PrefersTensorGemm(groups->up.first) &&
         PrefersTensorGemm(groups->down.first);
}

void TensorProducts(const ExpertGroups& groups, const Rows& rows,
                    Stream* stream) {
  TensorGemmArgs args;
  args.x_rows = rows.rows;
  args.counter = rows.counter;
  if (rows.sorted != nullptr) {
    args.tiles = rows.sorted->tiles;
    args.num_tiles = rows.sorted->num_tiles;
  }
  args.x = rows.x;
  args.x_scales = rows.x_scales;
  args.w = groups.gate;
  args.up = &groups.up;
  args.y = rows.h;
  args.y_scales = rows.h_scales;
  TensorGemm(args, stream);
  args.x = rows.h;
  args.x_scales = rows.h_scales;
  args.w = groups.down;
  args.up = nullptr;
  args.y = rows.y;
  args.y_dtype = rows.sorted != nullptr ? DType::kBFloat16 : DType::kFloat32;
  args.y_scales = nullptr;
  args.accumulate = rows.accumulate;
  TensorGemm(args, stream);
}

template <typename W>
void TileProducts(absl::Span<const GatedMlpWeights> experts, const Rows& rows,
                  Stream* stream) {
  const ExpertTable gates = MakeExpertTable(experts, &GatedMlpWeights::gate);
  const ExpertTable ups = MakeExpertTable(experts, &GatedMlpWeights::up);
  const ExpertTable downs = MakeExpertTable(experts, &GatedMlpWeights::down);
  RowsByExpert by_expert = {nullptr, nullptr, rows.rows};
  unsigned tiles = Blocks(rows.rows, kTile);
  if (rows.sorted != nullptr) {
    by_expert.tiles = rows.sorted->tiles;
    by_expert.num_tiles = rows.sorted->num_tiles;
    tiles = static_cast<unsigned>(rows.max_tiles * (kTileRows / kTile));
  }
  const BFloat16* const x = static_cast<const BFloat16*>(rows.x);
  BFloat16* const h = static_cast<BFloat16*>(rows.h);
  GateAndUpTiles<W>
      <<<dim3(Blocks(gates.shape.rows, kTile), tiles), kTileThreads, 0,
         stream->get()>>>(gates, ups, by_expert, x, h);
  CheckLaunch("GateAndUpTiles");
  const dim3 grid(Blocks(downs.shape.rows, kTile), tiles);
  if (rows.sorted != nullptr) {
    DownTiles<W><<<grid, kTileThreads, 0, stream->get()>>>(
        downs, by_expert, h, rows.accumulate, static_cast<BFloat16*>(rows.y));
  } else {
    DownTiles<W><<<grid, kTileThreads, 0, stream->get()>>>(
        downs, by_expert, h, rows.accumulate, static_cast<float*>(rows.y));
  }
  CheckLaunch("DownTiles");
}

void Products(absl::Span<const GatedMlpWeights> experts,
              const ExpertGroups* groups, const Rows& rows, Stream* stream) {
  if (groups != nullptr) {
    TensorProducts(*groups, rows, stream);
  } else if (experts[0].gate.dtype == DType::kBFloat16) {
    TileProducts<BFloat16>(experts, rows, stream);
  } else {
    TileProducts<Float8E4M3>(experts, rows, stream);
  }
}

// All rows use the one matrix. What units.h has no room for is in the scratch
// area, which bounds the rows of a pass.
void DenseRows(const FfnUnits& units, const ExpertGroups* groups,
               Stream* stream) {
  const int64_t hidden = units.matrices[0].gate.cols;
  const int64_t inter = units.matrices[0].gate.rows;
  const bool quantise =
      groups != nullptr && units.matrices[0].gate.dtype == DType::kFloat8E4M3;
  const int64_t x_scales = quantise ? ScaleStride(hidden) : 0;
  const int64_t h_scales = quantise ? ScaleStride(inter) : 0;
  const int64_t row_floats = quantise ? x_scales + h_scales + hidden / 4 : 0;
  constexpr int64_t kCounterFloats = 64;  // keeps what follows aligned
  float* const scratch = stream->Scratch<float>(kCounterFloats + row_floats);
  const int64_t chunk =
      quantise ? (stream->scratch_bytes() / int64_t{sizeof(float)} -
                  kCounterFloats) /
                     row_floats
               : units.rows;
  for (int64_t row = 0; row < units.rows; row += chunk) {
    Rows rows = {};
    rows.rows = std::min(chunk, units.rows - row);
    rows.counter = reinterpret_cast<int32_t*>(scratch);
    rows.x = static_cast<const BFloat16*>(units.x) + row * hidden;
    rows.h = units.h;
    rows.y = units.y + row * hidden;
    rows.accumulate = units.accumulate;
    if (quantise) {
      rows.x_scales = scratch + kCounterFloats;
      rows.h_scales = rows.x_scales + rows.rows * x_scales;
      QuantiseRowsArgs args;
      args.x = rows.x;
      args.rows = rows.rows;
      args.cols = hidden;
      args.quantised = rows.h_scales + rows.rows * h_scales;
      args.scales = rows.x_scales;
      QuantiseRows(args, stream);
      rows.x = args.quantised;
    }
    Products(units.matrices, groups, rows, stream);
  }
}

// Rows [row, row + count) of the units, which have experts.
void GroupedRows(const FfnUnits& units, const ExpertGroups* groups, int64_t row,
                 int64_t count, Stream* stream) {
  const int64_t hidden = units.matrices[0].gate.cols;
  const int64_t inter = units.matrices[0].gate.rows;
  const int experts = static_cast<int>(units.matrices.size());
  const PromptWorkspace work(units.h, count, units.top_k, hidden, inter,
                             experts);
  const BFloat16* const x =
      static_cast<const BFloat16*>(units.x) + row * hidden;
  SortUnits(units.experts + row * units.top_k, count * units.top_k, experts,
            work.sorted, stream);
  if (groups != nullptr && groups->gate.first.dtype == DType::kFloat8E4M3) {
    QuantiseRowsArgs args;
    args.x = x;
    args.rows = count;
    args.cols = hidden;
    args.places = {work.sorted.place, units.top_k};
    args.quantised = work.x;
    args.scales = work.x_scales;
    QuantiseRows(args, stream);
  } else {
    WithUnit(hidden, [&](auto unit) {
      CopyRows<unit>
          <<<Blocks(count * (hidden / unit), kCopyThreads), kCopyThreads, 0,
             stream->get()>>>(x, count, hidden, units.top_k, work.sorted.place,
                              static_cast<BFloat16*>(work.x));
    });
    CheckLaunch("CopyRows");
  }
  Rows rows = {};
  rows.rows = work.places;
  rows.x = work.x;
  rows.x_scales = work.x_scales;
  rows.h = work.h;
  rows.h_scales = work.h_scales;
  rows.y = work.x;
  rows.sorted = &work.sorted;
  rows.max_tiles = MaxTiles(count * units.top_k, experts);
  rows.counter = work.counter;
  Products(units.matrices, groups, rows, stream);
  WithUnit(hidden, [&](auto unit) {
    CombineRows<unit><<<Blocks(count * (hidden / unit), kCopyThreads),
                        kCopyThreads, 0, stream->get()>>>(
        static_cast<const BFloat16*>(work.x), work.sorted.place,
        units.weights + row * units.top_k, count, hidden, units.top_k,
        units.y + row * hidden);
  });
  CheckLaunch("CombineRows");
}

}  // namespace

bool TileFfnSupports(const FfnUnits& units) {
  const DType dtype = units.matrices[0].gate.dtype;
  return units.x_dtype == DType::kBFloat16 &&
         (dtype == DType::kBFloat16 || dtype == DType::kFloat8E4M3) &&
         units.matrices[0].gate.rows > 0;
}

void TileFfn(const FfnUnits& units, Stream* stream) {
  ExpertGroups storage;
  const ExpertGroups* const groups =
      GroupExperts(units.matrices, &storage) ? &storage : nullptr;
  if (units.experts == nullptr) {
    DenseRows(units, groups, stream);
    return;
  }
  RING_CHECK(!units.accumulate);
  for (int64_t row = 0; row < units.rows; row += kMaxPromptRows) {
    GroupedRows(units, groups, row, std::min(kMaxPromptRows, units.rows - row),
                stream);
  }
}

}  // namespace ring::cuda
