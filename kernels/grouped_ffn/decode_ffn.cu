// Decode rows through the experts that they chose, and through the shared one;
// every touched expert's weights are read once for up to 8 or 16 of its rows.
//
//   h[u] = silu(x gate^T) * (x up^T)     z[u] = h[u] down^T
//   y[r] = sum over slots of weight * z[(r, slot)], then + z[shared row r]
//
// A group is up to 8 or 16 units (rows) of one expert. ListGroups, one block,
// sorts the units by expert and cuts them into groups; one row needs no list.
// Then a block of GateAndUp owns 16 inner columns of one group, the gate rows
// as one fragment and the up rows as the other, or with one row, for an even
// load, 8, whose rows are the halves of one fragment; a block of Down owns 32
// hidden columns of one group (fragment_stream.cuh), and CombineSlots adds z in
// slot order, so nothing is added atomically. Blocks of groups that do not
// exist leave at once. Bound: memory, the weights of the touched experts.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/combine.cuh"
#include "kernels/grouped_ffn/expert_table.cuh"
#include "kernels/grouped_ffn/ffn_kernels.cuh"
#include "kernels/linear/fragment_stream.cuh"

namespace ring::cuda {
namespace {

// The form of a block with kTiles tiles that takes up to kGroups times 8 units.
template <int kGroups, int kTiles>
struct BlockForm {
  static constexpr int kBlocksEach = kGroups == 1 ? 4 : 2;
  static constexpr int kDownRows = kTiles * kFragmentRows;
  static constexpr int kInner = kDownRows / 2;  // columns of gate and of up
  template <typename W>
  using Weights = WeightStream<W, kTiles, (kGroups > 1 || kTiles == 1)>;
};

// Groups of 8 units take few registers and fill memory's pipes best. With more
// rows than this an expert often has more units, and reading its weights from
// L2 for a second group costs more.
constexpr int kSmallGroupRows = 128;
constexpr int kListThreads = 1024;
constexpr int kMaxRows = 256;  // of a launch

// Rows of one expert that pass through it together.
struct Group {
  int32_t expert;
  int32_t first;  // place of its first unit in the sorted order
  int32_t count;
};

struct FfnArgs {
  ExpertTable gate;
  ExpertTable up;
  ExpertTable down;
  GatedMlpWeights shared;
  const BFloat16* x;
  int rows;
  int top_k;
  int hidden;
  int num_experts;         // 0: the shared one alone
  const int32_t* experts;  // [rows, top_k]
  const float* weights;    // [rows, top_k]
  int shared_begin;
  int shared_rows;
  int shared_groups;
  int group_units;      // at most, of a group: 8 or 16
  Group* groups;        // [max_groups]
  int32_t* units;       // [rows * top_k] sorted by expert
  int32_t* num_groups;  // [1]
  int max_groups;       // of routed experts
  BFloat16* h;  // [rows * top_k, inter], then [shared_rows, shared inter]
  float* z;     // [rows * top_k + shared_rows, hidden]
};

// Sorts units by expert with counters in shared memory. The order of an
// expert's units is that of the counters and differs between runs; results do
// not depend on it, since a unit is a column of its own.
__global__ void __launch_bounds__(kListThreads)
    ListGroups(const __grid_constant__ FfnArgs args) {
  __shared__ int32_t count[kMaxExperts];
  __shared__ int32_t next[kMaxExperts];
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int units = args.rows * args.top_k;
  for (int e = threadIdx.x; e < kMaxExperts; e += kListThreads) count[e] = 0;
  __syncthreads();
  for (int u = threadIdx.x; u < units; u += kListThreads) {
    const int e = args.experts[u];
    if (e >= 0) atomicAdd(&count[e], 1);
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    int units_before = 0;
    int groups_before = 0;
    for (int begin = 0; begin < args.num_experts; begin += kWarp) {
      const int e = begin + static_cast<int>(threadIdx.x);
      const int mine = e < args.num_experts ? count[e] : 0;
      const int groups = (mine + args.group_units - 1) / args.group_units;
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
        args.groups[groups_before + groups_to - groups + g] = {
            e, first + g * args.group_units,
            min(args.group_units, mine - g * args.group_units)};
      }
      if (e < args.num_experts) next[e] = first;
      units_before += __shfl_sync(kAllLanes, units_to, kWarp - 1);
      groups_before += __shfl_sync(kAllLanes, groups_to, kWarp - 1);
    }
    if (threadIdx.x == 0) *args.num_groups = groups_before;
  }
  __syncthreads();
  for (int u = threadIdx.x; u < units; u += kListThreads) {
    const int e = args.experts[u];
    if (e >= 0) args.units[atomicAdd(&next[e], 1)] = u;
  }
}

// What the blocks of one group share. The groups of the shared expert come
// first: they are the same in every step.
struct Work {
  bool shared = false;
  int expert = -1;  // of a routed group
  int first = 0;    // of shared groups: shared row
  int count = 0;    // 0: there is no such group
};

__device__ Work FindWork(const FfnArgs& args, int index) {
  Work work;
  if (index < args.shared_groups) {
    work.shared = true;
    work.first = index * args.group_units;
    work.count = min(args.group_units, args.shared_rows - work.first);
    return work;
  }
  index -= args.shared_groups;
  if (args.rows == 1) {  // unit = slot
    work.expert = args.experts[index];
    work.first = index;
    work.count = work.expert >= 0 ? 1 : 0;
    return work;
  }
  if (index >= *args.num_groups) return work;
  const Group group = args.groups[index];
  work.expert = group.expert;
  work.first = group.first;
  work.count = group.count;
  return work;
}

// The unit at a place of the sorted order.
__device__ int UnitAt(const FfnArgs& args, int place) {
  return args.rows == 1 ? place : args.units[place];
}

// The i-th activation row of a group: of x for gate and up, of h for down.
__device__ const BFloat16* InputRow(const FfnArgs& args, const Work& work,
                                    int i) {
  const int row = work.shared ? args.shared_begin + work.first + i
                              : UnitAt(args, work.first + i) / args.top_k;
  return args.x + int64_t{row} * args.hidden;
}
__device__ BFloat16* InnerRow(const FfnArgs& args, const Work& work, int i) {
  const int64_t inter = args.gate.shape.rows;
  if (!work.shared) return args.h + UnitAt(args, work.first + i) * inter;
  return args.h + int64_t{args.rows} * args.top_k * inter +
         (work.first + i) * args.shared.gate.rows;
}
__device__ float* OutputRow(const FfnArgs& args, const Work& work, int i) {
  const int unit = work.shared ? args.rows * args.top_k + work.first + i
                               : UnitAt(args, work.first + i);
  return args.z + int64_t{unit} * args.hidden;
}

template <int kTiles, int kGroups, typename Weights>
__device__ void MultiplyGateAndUp(const FfnArgs& args, const Work& work,
                                  int64_t inter, Weights* stream,
                                  StreamPartial<kTiles, kGroups>* partial) {
  const int lane = threadIdx.x % kWarp;
  const BFloat16* x[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    x[g] = InputRow(args, work, min(g * kGroupRows + lane / 4, work.count - 1));
  }
  float sums[kTiles][kGroups][4];
  stream->Multiply(x, sums);
  partial->Put(sums);
  __syncthreads();
  constexpr int kRows = BlockForm<kGroups, kTiles>::kInner;
  const int64_t n = int64_t{blockIdx.x} * kRows;
  for (int o = threadIdx.x; o < work.count * kRows; o += kStreamThreads) {
    const int row = o % kRows;
    const int token = o / kRows;
    if (n + row >= inter) continue;
    InnerRow(args, work, token)[n + row] = Narrow<BFloat16>(
        SwiGlu(partial->Get(token, row), partial->Get(token, kRows + row)));
  }
}

template <typename W, int kMostGroups, int kTiles>
__global__ void __launch_bounds__(kStreamThreads,
                                  BlockForm<kMostGroups, kTiles>::kBlocksEach)
    GateAndUp(const __grid_constant__ FfnArgs args) {
  using Form = BlockForm<kMostGroups, kTiles>;
  __shared__ __align__(
      16) char memory[sizeof(StreamPartial<kTiles, kMostGroups>)];
  const int64_t n = int64_t{blockIdx.x} * Form::kInner;
  const int row = threadIdx.x % kWarp / 4;
  cudaGridDependencySynchronize();
  // Not earlier: Down looks at groups and experts before it waits.
  cudaTriggerProgrammaticLaunchCompletion();
  const Work work = FindWork(args, blockIdx.y);
  const WeightMatrix gate =
      work.shared ? args.shared.gate : args.gate.At(max(work.expert, 0));
  const WeightMatrix up =
      work.shared ? args.shared.up : args.up.At(max(work.expert, 0));
  if (work.count == 0 || n >= gate.rows) return;
  StreamRow<W> low[kTiles];
  StreamRow<W> high[kTiles];
  low[0] = StreamRowOf<W>(gate, n + row);
  if constexpr (kTiles == 1) {
    high[0] = StreamRowOf<W>(up, n + row);
  } else {
    high[0] = StreamRowOf<W>(gate, n + row + 8);
    low[1] = StreamRowOf<W>(up, n + row);
    high[1] = StreamRowOf<W>(up, n + row + 8);
  }
  typename Form::template Weights<W> stream(
      low, high, {gate.scales, up.scales}, static_cast<int>(gate.cols),
      static_cast<int>(gate.scale_col_offset));
  stream.Begin();
  if (kMostGroups == 1 || work.count <= kGroupRows) {
    using Partial = StreamPartial<kTiles, 1>;
    MultiplyGateAndUp<kTiles, 1>(args, work, gate.rows, &stream,
                                 reinterpret_cast<Partial*>(memory));
  } else if constexpr (kMostGroups > 1) {
    using Partial = StreamPartial<kTiles, kMostGroups>;
    MultiplyGateAndUp<kTiles, kMostGroups>(args, work, gate.rows, &stream,
                                           reinterpret_cast<Partial*>(memory));
  }
}

template <int kTiles, int kGroups, typename Weights>
__device__ void MultiplyDown(const FfnArgs& args, const Work& work,
                             Weights* stream,
                             StreamPartial<kTiles, kGroups>* partial) {
  const int lane = threadIdx.x % kWarp;
  const BFloat16* h[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    h[g] = InnerRow(args, work, min(g * kGroupRows + lane / 4, work.count - 1));
  }
  float sums[kTiles][kGroups][4];
  stream->Multiply(h, sums);
  partial->Put(sums);
  __syncthreads();
  constexpr int kRows = BlockForm<kGroups, kTiles>::kDownRows;
  const int64_t n = int64_t{blockIdx.x} * kRows;
  for (int o = threadIdx.x; o < work.count * kRows; o += kStreamThreads) {
    const int row = o % kRows;
    const int token = o / kRows;
    if (n + row >= args.hidden) continue;
    OutputRow(args, work, token)[n + row] = partial->Get(token, row);
  }
}

// Groups and experts are there when GateAndUp lets this kernel start, so the
// first weights are fetched before h is complete.
template <typename W, int kMostGroups, int kTiles>
__global__ void __launch_bounds__(kStreamThreads,
                                  BlockForm<kMostGroups, kTiles>::kBlocksEach)
    Down(const __grid_constant__ FfnArgs args) {
  using Form = BlockForm<kMostGroups, kTiles>;
  __shared__ __align__(
      16) char memory[sizeof(StreamPartial<kTiles, kMostGroups>)];
  cudaTriggerProgrammaticLaunchCompletion();
  const Work work = FindWork(args, blockIdx.y);
  if (work.count == 0) return;
  const WeightMatrix down =
      work.shared ? args.shared.down : args.down.At(work.expert);
  const int64_t n = int64_t{blockIdx.x} * Form::kDownRows;
  StreamRow<W> low[kTiles];
  StreamRow<W> high[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int row = t * kFragmentRows + threadIdx.x % kWarp / 4;
    low[t] = StreamRowOf<W>(down, n + row);
    high[t] = StreamRowOf<W>(down, n + row + 8);
  }
  typename Form::template Weights<W> stream(
      low, high, {down.scales, down.scales}, static_cast<int>(down.cols),
      static_cast<int>(down.scale_col_offset));
  stream.Begin();
  cudaGridDependencySynchronize();
  if (kMostGroups == 1 || work.count <= kGroupRows) {
    using Partial = StreamPartial<kTiles, 1>;
    MultiplyDown<kTiles, 1>(args, work, &stream,
                            reinterpret_cast<Partial*>(memory));
  } else if constexpr (kMostGroups > 1) {
    using Partial = StreamPartial<kTiles, kMostGroups>;
    MultiplyDown<kTiles, kMostGroups>(args, work, &stream,
                                      reinterpret_cast<Partial*>(memory));
  }
}

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// One row takes small blocks for gate and up, for an even load.
template <typename W, int kMostGroups, int kGateTiles>
void LaunchGroups(const FfnArgs& args, Stream* stream) {
  constexpr int kDownTiles = 2;
  using GateForm = BlockForm<kMostGroups, kGateTiles>;
  using DownForm = BlockForm<kMostGroups, kDownTiles>;
  const auto groups =
      static_cast<unsigned>(args.shared_groups + args.max_groups);
  const int64_t inter = std::max(args.gate.shape.rows, args.shared.gate.rows);
  LaunchOverlapped(GateAndUp<W, kMostGroups, kGateTiles>,
                   dim3(Blocks(inter, GateForm::kInner), groups),
                   kStreamThreads, 0, stream, args);
  LaunchOverlapped(Down<W, kMostGroups, kDownTiles>,
                   dim3(Blocks(args.hidden, DownForm::kDownRows), groups),
                   kStreamThreads, 0, stream, args);
}

template <typename W>
void Launch(const FfnArgs& args, Stream* stream) {
  if (args.max_groups > 0 && args.rows > 1) {
    LaunchOverlapped(ListGroups, 1, kListThreads, 0, stream, args);
  }
  if (args.shared_groups + args.max_groups == 0) return;
  if (args.rows == 1) {
    LaunchGroups<W, 1, 1>(args, stream);
  } else if (args.group_units == kGroupRows) {
    LaunchGroups<W, 1, 2>(args, stream);
  } else {
    LaunchGroups<W, 2, 2>(args, stream);
  }
}

bool FillAllFragments(const GatedMlpWeights& weights) {
  return FillsFragments(weights.gate) && FillsFragments(weights.up) &&
         FillsFragments(weights.down) &&
         weights.gate.row_stride == weights.up.row_stride &&
         weights.gate.scale_col_offset == weights.up.scale_col_offset;
}

// The rows [begin, end) of units, whose scratch memory fits.
void RunRows(const FfnUnits& units, int64_t begin, int64_t end,
             Stream* stream) {
  const bool routed = !units.matrices.empty();
  const int64_t shared_begin = std::max(units.shared_begin, begin);
  const int64_t shared_end =
      std::min(units.shared_begin + units.shared_rows, end);
  FfnArgs args = {};
  args.rows = static_cast<int>(end - begin);
  args.group_units = args.rows <= kSmallGroupRows ? kGroupRows : 2 * kGroupRows;
  if (routed) {
    args.gate = MakeExpertTable(units.matrices, &GatedMlpWeights::gate);
    args.up = MakeExpertTable(units.matrices, &GatedMlpWeights::up);
    args.down = MakeExpertTable(units.matrices, &GatedMlpWeights::down);
    args.num_experts = static_cast<int>(units.matrices.size());
    args.top_k = units.top_k;
    args.experts = units.experts + begin * units.top_k;
    args.weights = units.weights + begin * units.top_k;
  }
  const int64_t num_units = int64_t{args.rows} * args.top_k;
  args.max_groups = static_cast<int>(
      args.rows == 1
          ? num_units
          : std::min<int64_t>(num_units,
                              args.num_experts + num_units / args.group_units));
  if (units.shared != nullptr && shared_end > shared_begin) {
    args.shared = *units.shared;
    args.shared_begin = static_cast<int>(shared_begin - begin);
    args.shared_rows = static_cast<int>(shared_end - shared_begin);
    args.shared_groups = CeilDiv(args.shared_rows, args.group_units);
  }
  const GatedMlpWeights& any = routed ? units.matrices[0] : *units.shared;
  args.hidden = static_cast<int>(any.down.rows);
  args.x = static_cast<const BFloat16*>(units.x) + begin * args.hidden;

  const int64_t z_floats = (num_units + args.shared_rows) * args.hidden;
  const int64_t h_count = num_units * args.gate.shape.rows +
                          int64_t{args.shared_rows} * args.shared.gate.rows;
  const int64_t group_ints = int64_t{args.max_groups} * 3;
  args.z = stream->Scratch<float>(z_floats + (h_count + 1) / 2 + group_ints +
                                  num_units + 1);
  args.h = reinterpret_cast<BFloat16*>(args.z + z_floats);
  args.groups = reinterpret_cast<Group*>(args.z + z_floats + (h_count + 1) / 2);
  args.units = reinterpret_cast<int32_t*>(args.groups + args.max_groups);
  args.num_groups = args.units + num_units;
  if (any.gate.dtype == DType::kBFloat16) {
    Launch<BFloat16>(args, stream);
  } else {
    Launch<Float8E4M3>(args, stream);
  }
  ResidualNormArgs norm;
  CombineArgs combine;
  combine.z = args.z;
  combine.z_shared = args.z + num_units * args.hidden;
  combine.experts = args.experts;
  combine.weights = args.weights;
  combine.rows = args.rows;
  combine.hidden = args.hidden;
  combine.top_k = args.num_experts > 0 ? args.top_k : 0;
  combine.shared_begin = args.shared_begin;
  combine.shared_rows = args.shared_rows;
  combine.y = units.y + begin * args.hidden;
  combine.accumulate = units.accumulate;
  combine.norm = NormFrom(units.norm, begin, &norm);
  CombineSlots(combine, stream);
}

}  // namespace

bool DecodeFfnSupports(const FfnUnits& units) {
  if (units.x_dtype != DType::kBFloat16 ||
      reinterpret_cast<uintptr_t>(units.x) % kWideBytes != 0) {
    return false;
  }
  const bool routed = !units.matrices.empty();
  if (routed && !FillAllFragments(units.matrices[0])) return false;
  if (units.shared == nullptr) return routed;
  return FillAllFragments(*units.shared) &&
         (!routed || units.matrices[0].gate.dtype == units.shared->gate.dtype);
}

void DecodeFfn(const FfnUnits& units, Stream* stream) {
  for (int64_t row = 0; row < units.rows; row += kMaxRows) {
    RunRows(units, row, std::min(row + kMaxRows, units.rows), stream);
  }
}

}  // namespace ring::cuda
