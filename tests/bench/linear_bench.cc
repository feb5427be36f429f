// Linear: decode rows against the memory's read bandwidth, prompt rows in
// GFLOP/s.
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/base/thread_pool.h"
#include "kernels/linear/dnnl_gemm.h"
#include "kernels/linear/linear.h"
#include "tests/bench/machine.h"

namespace ring {
namespace {

// Weights and activations of any type with small non-zero values. Timing does
// not depend on values as long as they are normal numbers.
struct Problem {
  std::vector<uint8_t> weights;
  std::vector<uint8_t> x;
  std::vector<float> y;
  std::vector<float> scales;
  std::vector<int32_t> row_scale;
  LinearArgs args;

  Problem(DType x_dtype, DType w_dtype, int64_t rows, int64_t outputs,
          int64_t cols)
      : weights(outputs * cols * SizeOf(w_dtype), 0x3c),
        x(rows * cols * SizeOf(x_dtype), 0x3c),
        y(rows * outputs),
        scales(((outputs + 127) / 128) * ((cols + 127) / 128), 0.01f),
        row_scale(outputs) {
    for (int64_t i = 0; i < outputs; ++i) {
      row_scale[i] = static_cast<int32_t>(i / 128);
    }
    args.x = x.data();
    args.x_dtype = x_dtype;
    args.rows = rows;
    args.weight.data = weights.data();
    args.weight.dtype = w_dtype;
    args.weight.rows = outputs;
    args.weight.cols = args.weight.row_stride = cols;
    if (w_dtype == DType::kFloat8E4M3) {
      args.weight.scales = scales.data();
      args.weight.row_scale = row_scale.data();
      args.weight.scale_cols = (cols + 127) / 128;
    }
    args.y = y.data();
  }
};

struct Types {
  DType x;
  DType w;
  std::string Label() const {
    return std::string(Name(x)) + " x " + Name(w) + ", " + cpu::LinearIsaName();
  }
};
constexpr Types kTypes[] = {
    {DType::kBFloat16, DType::kBFloat16},
    {DType::kFloat32, DType::kBFloat16},
    {DType::kFloat32, DType::kFloat32},
    {DType::kBFloat16, DType::kFloat8E4M3},
};

// Weights far larger than the caches: [16384, 4096].
void BM_DecodeRows(benchmark::State& state) {
  const Types types = kTypes[state.range(0)];
  ThreadPool pool(static_cast<int>(state.range(2)));
  Problem problem(types.x, types.w, state.range(1), 16384, 4096);
  problem.args.decode_rows = problem.args.rows;
  const double read = ReadBandwidth(&pool);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::Linear(problem.args, &pool); });
  const double rate = static_cast<double>(problem.weights.size()) / best.wall_s;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["of_read"] = rate / read;
  state.SetLabel(types.Label());
}
BENCHMARK(BM_DecodeRows)
    ->ArgNames({"types", "rows", "threads"})
    ->ArgsProduct({{0, 1, 2, 3}, {1, 2, 4, 8, 16}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.2)
    ->Unit(benchmark::kMillisecond);

// K = N = 2048, weights in the last-level cache.
void BM_PromptRows(benchmark::State& state) {
  const Types types = kTypes[state.range(0)];
  ThreadPool pool(static_cast<int>(state.range(2)));
  Problem problem(types.x, types.w, state.range(1), 2048, 2048);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::Linear(problem.args, &pool); });
  ReportFlops(state, 2.0 * static_cast<double>(state.range(1)) * 2048 * 2048,
              best);
  state.SetLabel(types.Label());
}
BENCHMARK(BM_PromptRows)
    ->ArgNames({"types", "rows", "threads"})
    ->ArgsProduct({{0, 1, 2, 3}, {16, 64, 256, 2048}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.2)
    ->Unit(benchmark::kMillisecond);

// The library's product of the same size, to compare BM_PromptRows with.
void BM_PackagedGemm(benchmark::State& state) {
  const DType dtype = state.range(0) == 0 ? DType::kBFloat16 : DType::kFloat32;
  if (!DnnlGemmSupports(dtype)) {
    state.SkipWithError("the library has no vector code for this type here");
    return;
  }
  ThreadPool pool(static_cast<int>(state.range(2)));
  Problem problem(dtype, dtype, state.range(1), 2048, 2048);
  DnnlGemmArgs args;
  args.x = problem.args.x;
  args.rows = problem.args.rows;
  args.weight = problem.args.weight;
  args.y = problem.args.y;
  const BestTimes best = MeasureBest(state, [&] { DnnlGemm(args, &pool); });
  ReportFlops(state, 2.0 * static_cast<double>(state.range(1)) * 2048 * 2048,
              best);
  state.SetLabel(Name(dtype));
}
BENCHMARK(BM_PackagedGemm)
    ->ArgNames({"f32", "rows", "threads"})
    ->ArgsProduct({{0, 1}, {64, 256, 2048}, {1, 2}})
    ->UseManualTime()
    ->MinTime(0.2)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ring

BENCHMARK_MAIN();
