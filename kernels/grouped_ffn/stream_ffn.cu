// h[u] = silu(x gate^T) * (x up^T): a warp owns two inner columns of one unit.
// y[r] = sum over slots of weight * (h down^T): a warp owns two hidden columns
// of one row and adds the slots in order, so no two warps write one value.
// Units vary fastest over the grid: those of one expert read the same weights
// at about the same time, and only the first of them from memory.
// Bound: memory, the touched experts' weights.
#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/expert_table.cuh"
#include "kernels/grouped_ffn/ffn_kernels.cuh"
#include "kernels/linear/device_matrix.cuh"

namespace ring::cuda {
namespace {

constexpr int kOutPerWarp = 2;
constexpr int kWarps = 4;
constexpr int kOutPerBlock = kOutPerWarp * kWarps;

// FfnUnits without what only the host reads.
struct UnitArgs {
  const void* x;
  int top_k;
  const int32_t* experts;
  const float* weights;
  void* h;
  float* y;
  bool accumulate;
};

template <typename W, typename X, bool kWide>
__global__ void __launch_bounds__(kWarps* kWarp)
    GateAndUp(const __grid_constant__ ExpertTable gates,
              const __grid_constant__ ExpertTable ups, UnitArgs args) {
  const int64_t unit = blockIdx.x;
  const int expert = args.experts == nullptr ? 0 : args.experts[unit];
  const int64_t inter = gates.shape.rows;
  const int64_t n =
      int64_t{blockIdx.y} * kOutPerBlock + threadIdx.x / kWarp * kOutPerWarp;
  if (expert < 0 || n >= inter) return;
  const X* const x[1] = {static_cast<const X*>(args.x) +
                         unit / args.top_k * gates.shape.cols};
  float gate[1][kOutPerWarp];
  float up[1][kOutPerWarp];
  WarpDot<W, X, kWide>(gates.At(expert), n, x, gate);
  WarpDot<W, X, kWide>(ups.At(expert), n, x, up);
  if (threadIdx.x % kWarp != 0) return;
  X* const h = static_cast<X*>(args.h) + unit * inter;
#pragma unroll
  for (int o = 0; o < kOutPerWarp; ++o) {
    if (n + o < inter) h[n + o] = Narrow<X>(SwiGlu(gate[0][o], up[0][o]));
  }
}

template <typename W, typename X, bool kWide>
__global__ void __launch_bounds__(kWarps* kWarp)
    DownAndCombine(const __grid_constant__ ExpertTable downs, UnitArgs args) {
  const int64_t row = blockIdx.x;
  const int64_t hidden = downs.shape.rows;
  const int64_t n =
      int64_t{blockIdx.y} * kOutPerBlock + threadIdx.x / kWarp * kOutPerWarp;
  if (n >= hidden) return;
  float sum[kOutPerWarp] = {};
  for (int slot = 0; slot < args.top_k; ++slot) {
    const int64_t unit = row * args.top_k + slot;
    const int expert = args.experts == nullptr ? 0 : args.experts[unit];
    if (expert < 0) continue;
    const X* const h[1] = {static_cast<const X*>(args.h) +
                           unit * downs.shape.cols};
    float part[1][kOutPerWarp];
    LaneDot<W, X, kWide>(downs.At(expert), n, h, part);
    const float weight = args.weights == nullptr ? 1.0f : args.weights[unit];
#pragma unroll
    for (int o = 0; o < kOutPerWarp; ++o) sum[o] += weight * part[0][o];
  }
#pragma unroll
  for (int o = 0; o < kOutPerWarp; ++o) sum[o] = WarpSum(sum[o]);
  if (threadIdx.x % kWarp != 0) return;
  float* const y = args.y + row * hidden;
#pragma unroll
  for (int o = 0; o < kOutPerWarp; ++o) {
    if (n + o < hidden) y[n + o] = sum[o] + (args.accumulate ? y[n + o] : 0);
  }
}

template <typename W, typename X, bool kWide>
void Launch(const FfnUnits& units, Stream* stream) {
  const UnitArgs args = {units.x, units.top_k, units.experts,   units.weights,
                         units.h, units.y,     units.accumulate};
  const ExpertTable gates =
      MakeExpertTable(units.matrices, &GatedMlpWeights::gate);
  const ExpertTable ups = MakeExpertTable(units.matrices, &GatedMlpWeights::up);
  const ExpertTable downs =
      MakeExpertTable(units.matrices, &GatedMlpWeights::down);
  const dim3 in_grid(Blocks(units.rows * units.top_k, 1),
                     Blocks(gates.shape.rows, kOutPerBlock));
  if (gates.shape.rows > 0) {
    GateAndUp<W, X, kWide>
        <<<in_grid, kWarps * kWarp, 0, stream->get()>>>(gates, ups, args);
    CheckLaunch("GateAndUp");
  }
  const dim3 out_grid(Blocks(units.rows, 1),
                      Blocks(downs.shape.rows, kOutPerBlock));
  DownAndCombine<W, X, kWide>
      <<<out_grid, kWarps * kWarp, 0, stream->get()>>>(downs, args);
  CheckLaunch("DownAndCombine");
}

bool AllowsWide(absl::Span<const GatedMlpWeights> experts) {
  for (const GatedMlpWeights& expert : experts) {
    if (!AllowsWideLoads(expert.gate) || !AllowsWideLoads(expert.up) ||
        !AllowsWideLoads(expert.down)) {
      return false;
    }
  }
  return true;
}

}  // namespace

void StreamFfn(const FfnUnits& units, Stream* stream) {
  const bool wide = AllowsWide(units.matrices);
  WithWeightType(units.matrices[0].gate.dtype, [&](auto w) {
    WithFloatType(units.x_dtype, [&](auto x) {
      using W = decltype(w);
      using X = decltype(x);
      if (wide) {
        Launch<W, X, true>(units, stream);
      } else {
        Launch<W, X, false>(units, stream);
      }
    });
  });
}

}  // namespace ring::cuda
