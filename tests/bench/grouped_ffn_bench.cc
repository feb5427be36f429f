// GroupedFfn with the shapes of a 16B model's layer: 2048 hidden, 512 inner,
// 8 of 256 experts per row.
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/base/thread_pool.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/linear/linear.h"
#include "tests/bench/machine.h"

namespace ring {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kInter = 512;
constexpr int64_t kExperts = 256;
constexpr int kTopK = 8;

struct Problem {
  // gate, up and down of every expert, bf16: 1.6 GB, more than any cache.
  std::vector<BFloat16> weights;
  std::vector<GatedMlpWeights> experts;
  std::vector<BFloat16> x;
  std::vector<int32_t> chosen;
  std::vector<float> factors;
  std::vector<float> y;
  std::vector<unsigned char> workspace;
  GroupedFfnArgs args;

  explicit Problem(int64_t rows)
      : weights(kExperts * 3 * kHidden * kInter, BFloat16{0x3c3c}),
        x(rows * kHidden, BFloat16{0x3c3c}),
        factors(rows * kTopK, 0.125f),
        y(rows * kHidden),
        workspace(GroupedFfnWorkspaceBytes(rows, kTopK, kHidden, kInter,
                                           DType::kBFloat16, kExperts)) {
    const BFloat16* next = weights.data();
    const auto take = [&](int64_t out, int64_t in) {
      WeightMatrix w;
      w.data = next;
      w.rows = out;
      w.cols = w.row_stride = in;
      next += out * in;
      return w;
    };
    for (int64_t e = 0; e < kExperts; ++e) {
      GatedMlpWeights expert;
      expert.gate = take(kInter, kHidden);
      expert.up = take(kInter, kHidden);
      expert.down = take(kHidden, kInter);
      experts.push_back(expert);
    }
    chosen.resize(rows * kTopK);
    args.x = x.data();
    args.x_dtype = DType::kBFloat16;
    args.rows = rows;
    args.top_k = kTopK;
    args.local_experts = chosen.data();
    args.weights = factors.data();
    args.experts = experts;
    args.hidden = kHidden;
    args.y = y.data();
    args.workspace = workspace.data();
  }

  // Eight different experts a row, others in every step.
  void Choose(int64_t step) {
    for (size_t p = 0; p < chosen.size(); ++p) {
      chosen[p] = static_cast<int32_t>((step * 101 +
                                        static_cast<int64_t>(p / kTopK) * 37 +
                                        static_cast<int64_t>(p % kTopK) * 32) %
                                       kExperts);
    }
  }
};

// One row: the bytes of eight experts against the memory's read bandwidth.
void BM_DecodeRow(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  Problem problem(1);
  const double read = ReadBandwidth(&pool);
  int64_t step = 0;
  const BestTimes best = MeasureBest(state, [&] {
    problem.Choose(++step);
    cpu::GroupedFfn(problem.args, &pool);
  });
  const double rate = kTopK * 3.0 * kHidden * kInter * 2 / best.wall_s;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["of_read"] = rate / read;
  state.SetLabel(cpu::LinearIsaName());
}
BENCHMARK(BM_DecodeRow)
    ->ArgNames({"threads"})
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// A prompt: 2048 rows, 64 for each expert.
void BM_PromptRows(benchmark::State& state) {
  const int64_t rows = state.range(0);
  ThreadPool pool(static_cast<int>(state.range(1)));
  Problem problem(rows);
  problem.Choose(1);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::GroupedFfn(problem.args, &pool); });
  ReportFlops(state,
              2.0 * static_cast<double>(rows) * kTopK * 3 * kHidden * kInter,
              best);
  state.SetLabel(cpu::LinearIsaName());
}
BENCHMARK(BM_PromptRows)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{16, 2048}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ring

BENCHMARK_MAIN();
