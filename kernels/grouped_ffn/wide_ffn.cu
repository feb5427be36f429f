// Decode rows in larger numbers through the experts that they chose, block FP8;
// every touched expert's weights are read once for up to 32 of its rows.
//
//   h[u] = silu(x gate^T) * (x up^T)     z[u] = h[u] down^T
//   y[r] = sum over slots of weight * z[(r, slot)], then + z[shared row r]
//
// ListGroups, one block, sorts the units by expert and cuts them into groups;
// GatherRows copies x into that order. MultiplyGroups runs twice, for h and for
// z: persistent blocks walk over tiles of 128 inner columns (gate and up) or
// 256 hidden columns of one group. Four warpgroups multiply (wide_product.cuh);
// with gate and up, a lane's two weight rows are those of one inner column. A
// thread of the fifth feeds a ring of stages through the copy engine and runs
// ahead into the next tile. CombineSlots adds z in slot order, so nothing is
// added atomically. Shared memory: 5 stages of 32 KiB of weights and 8 KiB of
// rows. Bound: memory, the weights of the touched experts.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/combine.cuh"
#include "kernels/grouped_ffn/expert_table.cuh"
#include "kernels/grouped_ffn/ffn_kernels.cuh"
#include "kernels/linear/device_matrix.cuh"
#include "kernels/linear/hopper.cuh"
#include "kernels/linear/tensor_map.cuh"
#include "kernels/linear/wide_product.cuh"

namespace ring::cuda {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 4;  // warpgroups
constexpr int kConsumerWarps = kConsumers * kWarpgroup / kWarp;
constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
// Of 65,536 / kThreads at start, in units of 8.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 112;
constexpr int kGroupUnits = 32;  // at most, of a group
constexpr int kBoxUnits = 16;    // of a copy
constexpr int kBoxRows = 128;    // of weights, of a copy
constexpr int kBoxBytes = kBoxRows * kChunkColumns;
constexpr int kWeightBytes = 2 * kBoxBytes;
constexpr int kSlabBytes = kGroupUnits * kSlabRowBytes;
constexpr int kStageBytes = kWeightBytes + kChunkSlabs * kSlabBytes;
constexpr int kStages = 5;
constexpr int kListThreads = 1024;
constexpr int kCopyThreads = 256;
constexpr int kMaxRows = 256;  // of a launch

// Units of one expert that pass through it together.
struct Group {
  int32_t expert;
  int32_t first;  // place of its first unit in the sorted order
  int32_t count;
};

struct Lists {
  const int32_t* experts;  // [units]
  int units;               // rows * top_k
  int top_k;
  int num_experts;
  Group* groups;      // [max groups]
  int32_t* sorted;    // [units] units by expert
  int32_t* place_of;  // [units] place in that order, -1: no expert
  int32_t* counts;    // [2] groups, units with an expert
};

// The order of an expert's units is that of the counters and differs between
// runs; results do not depend on it, since a unit is a column of its own.
__global__ void __launch_bounds__(kListThreads)
    ListGroups(const __grid_constant__ Lists lists) {
  __shared__ int32_t count[kMaxExperts];
  __shared__ int32_t next[kMaxExperts];
  cudaTriggerProgrammaticLaunchCompletion();
  for (int e = threadIdx.x; e < kMaxExperts; e += kListThreads) count[e] = 0;
  __syncthreads();
  cudaGridDependencySynchronize();
  for (int u = threadIdx.x; u < lists.units; u += kListThreads) {
    const int e = lists.experts[u];
    if (e >= 0) atomicAdd(&count[e], 1);
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    int units_before = 0;
    int groups_before = 0;
    for (int begin = 0; begin < lists.num_experts; begin += kWarp) {
      const int e = begin + static_cast<int>(threadIdx.x);
      const int mine = e < lists.num_experts ? count[e] : 0;
      const int groups = (mine + kGroupUnits - 1) / kGroupUnits;
      int units_to = mine;
      int groups_to = groups;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int u = __shfl_up_sync(kAllLanes, units_to, offset);
        const int g = __shfl_up_sync(kAllLanes, groups_to, offset);
        if (threadIdx.x >= offset) {
          units_to += u;
          groups_to += g;
        }
      }
      const int first = units_before + units_to - mine;
      for (int g = 0; g < groups; ++g) {
        lists.groups[groups_before + groups_to - groups + g] = {
            e, first + g * kGroupUnits,
            min(kGroupUnits, mine - g * kGroupUnits)};
      }
      if (e < lists.num_experts) next[e] = first;
      units_before += __shfl_sync(kAllLanes, units_to, kWarp - 1);
      groups_before += __shfl_sync(kAllLanes, groups_to, kWarp - 1);
    }
    if (threadIdx.x == 0) {
      lists.counts[0] = groups_before;
      lists.counts[1] = units_before;
    }
  }
  __syncthreads();
  for (int u = threadIdx.x; u < lists.units; u += kListThreads) {
    const int e = lists.experts[u];
    const int place = e >= 0 ? atomicAdd(&next[e], 1) : -1;
    lists.place_of[u] = place;
    if (place >= 0) lists.sorted[place] = u;
  }
}

// to[place] = x[row of the unit there]; a block a place.
__global__ void __launch_bounds__(kCopyThreads)
    GatherRows(const BFloat16* x, int hidden, Lists lists, BFloat16* to) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int place = static_cast<int>(blockIdx.x);
  if (place >= lists.counts[1]) return;
  const int row = lists.sorted[place] / lists.top_k;
  const uint4* const from =
      reinterpret_cast<const uint4*>(x + int64_t{row} * hidden);
  uint4* const out = reinterpret_cast<uint4*>(to + int64_t{place} * hidden);
  for (int i = threadIdx.x; i < hidden / 8; i += kCopyThreads) out[i] = from[i];
}

// A matrix's scales, for every expert.
struct ScaleTable {
  const float* scales;  // from the first column's on
  const int32_t* row_scale;
  int64_t scales_stride;     // elements
  int64_t row_scale_stride;  // elements
  int64_t scale_cols;
};

// The routed experts or the shared one.
struct Side {
  CUtensorMap w[2];  // [experts, rows, cols]: gate and up, or down
  CUtensorMap x;     // [units, cols]
  ScaleTable scales[2];
  void* out;    // [units, outputs] bf16 h or fp32 z
  int outputs;  // of a matrix
  int chunks;   // of the columns
  int tiles;    // of the outputs
};

struct WideArgs {
  Side sides[2];  // routed, shared
  const Group* groups;
  const int32_t* num_groups;
  int shared_units;
  int shared_groups;
};

// A tile of one group's results.
struct Work {
  int side = 0;
  int expert = 0;
  int first = 0;  // unit
  int count = 0;  // 0: there are no more tiles
  int tile = 0;
};

// The shared expert's groups come first.
__device__ Work WorkAt(const WideArgs& args, int num_groups, int index) {
  Work work;
  const int shared = args.shared_groups * args.sides[1].tiles;
  if (index < shared) {
    const int group = index / args.sides[1].tiles;
    work.side = 1;
    work.tile = index - group * args.sides[1].tiles;
    work.first = group * kGroupUnits;
    work.count = min(kGroupUnits, args.shared_units - work.first);
    return work;
  }
  index -= shared;
  const int g = index / max(args.sides[0].tiles, 1);
  if (g >= num_groups) return work;
  const Group group = args.groups[g];
  work.tile = index - g * args.sides[0].tiles;
  work.expert = group.expert;
  work.first = group.first;
  work.count = group.count;
  return work;
}

struct Barriers {
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// One thread: fills the stages of the block's tiles.
template <bool kGateAndUp>
__device__ void Produce(const WideArgs& args, int num_groups, char* stages,
                        Barriers* barriers) {
  int step = 0;
  for (int index = blockIdx.x;; index += gridDim.x) {
    const Work work = WorkAt(args, num_groups, index);
    if (work.count == 0) return;
    const Side& side = args.sides[work.side];
    const int boxes = (work.count + kBoxUnits - 1) / kBoxUnits;
    const int row = work.tile * (kGateAndUp ? 1 : 2) * kBoxRows;
    for (int chunk = 0; chunk < side.chunks; ++chunk, ++step) {
      const StageAt<kStages> at(step);
      if (step >= kStages)
        WaitBarrier(&barriers->empty[at.slot], at.parity ^ 1);
      uint64_t* const full = &barriers->full[at.slot];
      ArriveExpecting(
          full, kWeightBytes + boxes * kBoxUnits * kChunkSlabs * kSlabRowBytes);
      char* const stage = stages + at.slot * kStageBytes;
      const int column = chunk * kChunkColumns;
      CopyTile(&side.w[0], column, row, work.expert, stage, full);
      if constexpr (kGateAndUp) {
        CopyTile(&side.w[1], column, row, work.expert, stage + kBoxBytes, full);
      } else {
        CopyTile(&side.w[0], column, row + kBoxRows, work.expert,
                 stage + kBoxBytes, full);
      }
#pragma unroll
      for (int slab = 0; slab < kChunkSlabs; ++slab) {
        for (int box = 0; box < boxes; ++box) {
          CopyTile(&side.x, column + slab * kSlabColumns,
                   work.first + box * kBoxUnits,
                   stage + kWeightBytes + slab * kSlabBytes +
                       box * kBoxUnits * kSlabRowBytes,
                   full);
        }
      }
    }
  }
}

// A lane's place in a tile: rows 16 warp + lane / 4 and + 8 of down; or row 8
// warp + lane / 4 of gate and of up.
template <bool kGateAndUp>
__device__ int TileRow() {
  return (kGateAndUp ? 8 : 16) * static_cast<int>(threadIdx.x / kWarp) +
         static_cast<int>(threadIdx.x % kWarp) / 4;
}
// ... among the outputs.
template <bool kGateAndUp>
__device__ int OutputOf(const Work& work) {
  return work.tile * (kGateAndUp ? 1 : 2) * kBoxRows + TileRow<kGateAndUp>();
}

// Where the scales of a lane's two weight rows begin. They are looked up in two
// turns while the tile before is multiplied, so that nobody waits for them.
struct ScalePlaces {
  int32_t row[2];  // of the table
  const float* scales[2];
  float first[2];
};

template <bool kGateAndUp>
__device__ void FindRows(const Side& side, const Work& work,
                         ScalePlaces* found) {
  const int n = OutputOf<kGateAndUp>(work);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const ScaleTable& table = side.scales[kGateAndUp ? h : 0];
    const int row = min(kGateAndUp ? n : n + 8 * h, side.outputs - 1);
    found->row[h] = table.row_scale[work.expert * table.row_scale_stride + row];
  }
}

template <bool kGateAndUp>
__device__ void FindScales(const Side& side, const Work& work,
                           ScalePlaces* found) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const ScaleTable& table = side.scales[kGateAndUp ? h : 0];
    found->scales[h] = table.scales + work.expert * table.scales_stride +
                       found->row[h] * table.scale_cols;
    found->first[h] = *found->scales[h];
  }
}

// The warpgroups' part of a tile of up to kUnits units; from the step
// `step` of the ring on. Looks up the scales of the tile after it.
template <bool kGateAndUp, int kUnits>
__device__ void MultiplyTile(const WideArgs& args, const Work& work,
                             const Work& after, int step, const char* stages,
                             Barriers* barriers, ScalePlaces* scales) {
  constexpr int kSums = kUnits / 2;
  constexpr int kHighBytes = kGateAndUp ? kBoxBytes : 8 * kChunkColumns;
  const Side& side = args.sides[work.side];
  const Side& side_after = args.sides[after.side];
  const int lane = threadIdx.x % kWarp;
  float sums[kSums] = {};
  const ScalePlaces mine = *scales;
  float next[2] = {mine.first[0], mine.first[1]};
  if (after.count > 0) FindRows<kGateAndUp>(side_after, after, scales);
  for (int chunk = 0; chunk < side.chunks; ++chunk) {
    const StageAt<kStages> at(step + chunk);
    const float scale[2] = {next[0], next[1]};
    if (chunk + 1 < side.chunks) {
      next[0] = mine.scales[0][chunk + 1];
      next[1] = mine.scales[1][chunk + 1];
    }
    WaitBarrier(&barriers->full[at.slot], at.parity);
    const char* const stage = stages + at.slot * kStageBytes;
    const char* const weights =
        stage + TileRow<kGateAndUp>() * kChunkColumns + lane % 4 * 2;
    float part[1][kSums];
    MultiplyChunk<(kUnits > 16)>(weights, weights + kHighBytes, lane / 4,
                                 SharedAddress(stage) + kWeightBytes,
                                 kSlabBytes, WideFactor(), WideFactor(), false,
                                 part);
    if (lane == 0) ArriveAt(&barriers->empty[at.slot], 0);
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += scale[i / 2 % 2] * part[0][i];
    if (chunk == side.chunks / 2 && after.count > 0) {
      FindScales<kGateAndUp>(side_after, after, scales);
    }
  }
  const int n = OutputOf<kGateAndUp>(work);
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int unit = j * 8 + lane % 4 * 2 + e;
      if (unit >= work.count || n >= side.outputs) continue;
      const int64_t at = int64_t{work.first + unit} * side.outputs + n;
      const float a = sums[4 * j + e];
      const float b = sums[4 * j + 2 + e];
      if constexpr (kGateAndUp) {
        static_cast<BFloat16*>(side.out)[at] = Narrow<BFloat16>(SwiGlu(a, b));
      } else {
        static_cast<float*>(side.out)[at] = a;
        static_cast<float*>(side.out)[at + 8] = b;
      }
    }
  }
}

template <bool kGateAndUp>
__global__ void __launch_bounds__(kThreads, 1)
    MultiplyGroups(const __grid_constant__ WideArgs args) {
  extern __shared__ char memory[];
  __shared__ Barriers barriers;
  char* const stages = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      InitBarrier(&barriers.full[s], 1);
      InitBarrier(&barriers.empty[s], kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int num_groups = *args.num_groups;
  // Known to the compiler to be the same in a warp.
  const int warpgroup = __shfl_sync(kAllLanes, threadIdx.x / kWarpgroup, 0);
  if (warpgroup == kConsumers) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x == kConsumers * kWarpgroup) {
      Produce<kGateAndUp>(args, num_groups, stages, &barriers);
    }
    return;
  }
  TakeRegisters<kConsumerRegisters>();
  int step = 0;
  int index = blockIdx.x;
  Work work = WorkAt(args, num_groups, index);
  ScalePlaces scales = {};
  if (work.count > 0) {
    FindRows<kGateAndUp>(args.sides[work.side], work, &scales);
    FindScales<kGateAndUp>(args.sides[work.side], work, &scales);
  }
  while (work.count > 0) {
    index += gridDim.x;
    const Work after = WorkAt(args, num_groups, index);
    if (work.count <= 16) {
      MultiplyTile<kGateAndUp, 16>(args, work, after, step, stages, &barriers,
                                   &scales);
    } else {
      MultiplyTile<kGateAndUp, 32>(args, work, after, step, stages, &barriers,
                                   &scales);
    }
    step += args.sides[work.side].chunks;
    work = after;
  }
}

// ---- Launching.

void SetMatrix(const ExpertTable& table, int64_t experts, int index,
               Side* side) {
  const WeightMatrix& w = table.shape;
  MapArgs map = {w.data, w.dtype, w.cols, w.rows, w.row_stride, kBoxRows};
  map.matrices = experts;
  // A single matrix has no stride, but the map wants one.
  map.matrix_stride = experts > 1 ? table.data_stride : w.row_stride;
  side->w[index] = MakeMap(map);
  side->scales[index] = {
      w.scales + w.scale_col_offset / kScaleBlock, w.row_scale,
      table.scales_stride / static_cast<int64_t>(sizeof(float)),
      table.row_scale_stride / static_cast<int64_t>(sizeof(int32_t)),
      w.scale_cols};
}

// One of the two products of `experts`; x: [units, cols].
Side MakeSide(absl::Span<const GatedMlpWeights> experts, bool gate_and_up,
              const void* x, int64_t units, void* out) {
  const int64_t count = static_cast<int64_t>(experts.size());
  Side side = {};
  const WeightMatrix& w = gate_and_up ? experts[0].gate : experts[0].down;
  if (gate_and_up) {
    SetMatrix(MakeExpertTable(experts, &GatedMlpWeights::gate), count, 0,
              &side);
    SetMatrix(MakeExpertTable(experts, &GatedMlpWeights::up), count, 1, &side);
  } else {
    SetMatrix(MakeExpertTable(experts, &GatedMlpWeights::down), count, 0,
              &side);
  }
  side.x = MakeMap({x, DType::kBFloat16, w.cols, units, w.cols, kBoxUnits});
  side.out = out;
  side.outputs = static_cast<int>(w.rows);
  side.chunks = static_cast<int>(w.cols / kChunkColumns);
  side.tiles =
      static_cast<int>(Blocks(w.rows, gate_and_up ? kBoxRows : 2 * kBoxRows));
  return side;
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

template <bool kGateAndUp>
void LaunchGroups(const WideArgs& args, Stream* stream) {
  constexpr int kSharedBytes = kStages * kStageBytes + 1024;
  const auto kernel = MultiplyGroups<kGateAndUp>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  LaunchDependent(kernel, NumMultiprocessors(), kThreads, kSharedBytes, stream,
                  args);
}

// Where the intermediate results of a launch lie in the scratch area.
struct Plan {
  int64_t units = 0;  // rows * top_k
  int64_t max_groups = 0;
  int64_t inter = 0;
  int64_t shared_inter = 0;
  int64_t z = 0;  // byte offsets, multiples of 256
  int64_t z_shared = 0;
  int64_t x = 0;
  int64_t h = 0;
  int64_t h_shared = 0;
  int64_t lists = 0;
  int64_t bytes = 0;
};

Plan PlanRows(const FfnUnits& units, int64_t rows) {
  constexpr int64_t kAlignment = 256;
  const int64_t hidden = units.matrices[0].gate.cols;
  Plan plan;
  plan.units = rows * units.top_k;
  plan.max_groups =
      static_cast<int64_t>(units.matrices.size()) + plan.units / kGroupUnits;
  plan.inter = units.matrices[0].gate.rows;
  plan.shared_inter = units.shared != nullptr ? units.shared->gate.rows : 0;
  const auto take = [&](int64_t bytes) {
    const int64_t at = plan.bytes;
    plan.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  const int64_t shared_rows = units.shared != nullptr ? rows : 0;
  plan.z = take(plan.units * hidden * 4);
  plan.z_shared = take(shared_rows * hidden * 4);
  plan.x = take(plan.units * hidden * 2);
  plan.h = take(plan.units * plan.inter * 2);
  plan.h_shared = take(shared_rows * plan.shared_inter * 2);
  plan.lists = take(plan.max_groups * static_cast<int64_t>(sizeof(Group)) +
                    (2 * plan.units + 2) * 4);
  return plan;
}

// The rows [begin, end) of units, whose scratch memory fits.
void RunRows(const FfnUnits& units, int64_t begin, int64_t end,
             Stream* stream) {
  const int64_t rows = end - begin;
  const int hidden = static_cast<int>(units.matrices[0].gate.cols);
  const Plan plan = PlanRows(units, rows);
  char* const scratch = stream->Scratch<char>(plan.bytes);
  const auto* const x = static_cast<const BFloat16*>(units.x) + begin * hidden;
  const int64_t shared_begin = std::max(units.shared_begin, begin);
  const int64_t shared_rows =
      units.shared == nullptr
          ? 0
          : std::max<int64_t>(
                0, std::min(units.shared_begin + units.shared_rows, end) -
                       shared_begin);
  Lists lists;
  lists.experts = units.experts + begin * units.top_k;
  lists.units = static_cast<int>(plan.units);
  lists.top_k = units.top_k;
  lists.num_experts = static_cast<int>(units.matrices.size());
  lists.groups = reinterpret_cast<Group*>(scratch + plan.lists);
  lists.sorted = reinterpret_cast<int32_t*>(lists.groups + plan.max_groups);
  lists.place_of = lists.sorted + plan.units;
  lists.counts = lists.place_of + plan.units;
  LaunchDependent(ListGroups, 1, kListThreads, 0, stream, lists);
  auto* const gathered = reinterpret_cast<BFloat16*>(scratch + plan.x);
  LaunchDependent(GatherRows, Blocks(plan.units, 1), kCopyThreads, 0, stream, x,
                  hidden, lists, gathered);

  WideArgs args = {};
  args.groups = lists.groups;
  args.num_groups = lists.counts;
  args.shared_units = static_cast<int>(shared_rows);
  args.shared_groups =
      static_cast<int>((shared_rows + kGroupUnits - 1) / kGroupUnits);
  for (const bool gate_and_up : {true, false}) {
    args.sides[0] = MakeSide(
        units.matrices, gate_and_up,
        gate_and_up ? static_cast<const void*>(gathered) : scratch + plan.h,
        plan.units, scratch + (gate_and_up ? plan.h : plan.z));
    if (shared_rows > 0) {
      args.sides[1] = MakeSide(
          absl::MakeConstSpan(units.shared, 1), gate_and_up,
          gate_and_up
              ? static_cast<const void*>(x + (shared_begin - begin) * hidden)
              : scratch + plan.h_shared,
          shared_rows, scratch + (gate_and_up ? plan.h_shared : plan.z_shared));
    }
    if (gate_and_up) {
      LaunchGroups<true>(args, stream);
    } else {
      LaunchGroups<false>(args, stream);
    }
  }

  ResidualNormArgs norm;
  CombineArgs combine;
  combine.z = reinterpret_cast<const float*>(scratch + plan.z);
  combine.z_shared = reinterpret_cast<const float*>(scratch + plan.z_shared);
  combine.place_of = lists.place_of;
  combine.weights = units.weights + begin * units.top_k;
  combine.rows = rows;
  combine.hidden = hidden;
  combine.top_k = units.top_k;
  combine.shared_begin = shared_begin - begin;
  combine.shared_rows = shared_rows;
  combine.y = units.y + begin * hidden;
  combine.norm = NormFrom(units.norm, begin, &norm);
  CombineSlots(combine, stream);
}

bool TakesMatrix(const WeightMatrix& w) {
  return w.dtype == DType::kFloat8E4M3 && !w.empty() && AllowsWideLoads(w) &&
         w.cols % kChunkColumns == 0 && w.rows % kChunkColumns == 0 &&
         w.scale_col_offset % kChunkColumns == 0;
}
bool TakesMlp(const GatedMlpWeights& mlp) {
  return TakesMatrix(mlp.gate) && TakesMatrix(mlp.up) && TakesMatrix(mlp.down);
}

}  // namespace

bool WideFfnSupports(const FfnUnits& units) {
  if (units.matrices.empty() || units.accumulate ||
      units.x_dtype != DType::kBFloat16 || !TakesMlp(units.matrices[0]) ||
      (units.shared != nullptr && !TakesMlp(*units.shared)) ||
      reinterpret_cast<uintptr_t>(units.x) % kWideBytes != 0) {
    return false;
  }
  if (units.matrices.size() == 1) return true;
  const ptrdiff_t stride =
      static_cast<const char*>(units.matrices[1].gate.data) -
      static_cast<const char*>(units.matrices[0].gate.data);
  return stride > 0 && stride % kWideBytes == 0;
}

void WideFfn(const FfnUnits& units, Stream* stream) {
  int64_t rows = kMaxRows;
  while (rows > 1 && PlanRows(units, rows).bytes > stream->scratch_bytes()) {
    rows /= 2;
  }
  for (int64_t row = 0; row < units.rows; row += rows) {
    RunRows(units, row, std::min(row + rows, units.rows), stream);
  }
}

}  // namespace ring::cuda
