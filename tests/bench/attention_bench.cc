// Lightning attention and paged attention: decode against the memory's
// bandwidth, prompts in GFLOP/s (multiply and add count as two).
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/base/thread_pool.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/linear/linear.h"
#include "kernels/paged_attention/paged_attention.h"
#include "tests/bench/machine.h"

namespace ring {
namespace {

// Small normal numbers, so that nothing overflows or turns denormal.
std::vector<float> Values(int64_t n) {
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = ((i * 7 + 3) % 61 - 30) / 64.0f;
  return x;
}

// Segments of `sequences` sequences with `rows` rows each at `position`.
struct Segments {
  Segments(int sequences, int rows, int position, bool decode,
           int64_t pages = 0)
      : row_begin(sequences),
        row_count(sequences, rows),
        positions(sequences, position),
        slots(sequences),
        page_table(sequences * pages) {
    for (int s = 0; s < sequences; ++s) row_begin[s] = s * rows;
    std::iota(slots.begin(), slots.end(), 0);
    std::iota(page_table.begin(), page_table.end(), 0);
    view.num_segments = sequences;
    view.num_decode_segments = decode ? sequences : 0;
    view.row_begin = row_begin.data();
    view.row_count = row_count.data();
    view.position = positions.data();
    view.state_in = view.state_out = view.page_row = slots.data();
    view.page_table = page_table.data();
    view.page_stride = pages;
  }

  std::vector<int32_t> row_begin, row_count, positions, slots, page_table;
  StepSegments view;
};

// One layer of heads of 128, 64 of them rotated.
constexpr int kDim = 128;
constexpr int kHalf = 32;

struct LightningProblem {
  LightningProblem(int heads, int sequences, int rows, bool decode)
      : segments(sequences, rows, decode ? 100 : 0, decode),
        qkv(Values(int64_t{sequences} * rows * 3 * heads * kDim)),
        gate(Values(int64_t{sequences} * rows * heads * kDim)),
        weight(heads * kDim, 1.0f),
        rates(heads, 0.05f),
        cos(int64_t{sequences} * rows * kHalf, 0.6f),
        sin(int64_t{sequences} * rows * kHalf, 0.8f),
        states(Values(int64_t{sequences} * heads * kDim * kDim)),
        out(gate.size()),
        workspace(
            LightningWorkspaceFloats(int64_t{sequences} * rows, heads, kDim)) {
    args.qkv = qkv.data();
    args.gate = gate.data();
    args.rows = int64_t{sequences} * rows;
    args.num_heads = heads;
    args.head_dim = kDim;
    args.q_norm = args.k_norm = args.g_norm = weight.data();
    args.eps = 1e-6f;
    args.rope = {cos.data(), sin.data(), kHalf};
    args.decay_rates = rates.data();
    args.segments = segments.view;
    args.states = states.data();
    args.groups = heads >= 8 ? heads / 8 : 1;
    args.out = out.data();
    args.workspace = workspace.data();
  }

  Segments segments;
  std::vector<float> qkv, gate, weight, rates, cos, sin, states, out, workspace;
  LightningAttentionArgs args;
};

// 16 sequences x 32 heads: 32 MiB of state, each byte read and written once.
void BM_LightningDecode(benchmark::State& state) {
  constexpr int kHeads = 32;
  const int sequences = static_cast<int>(state.range(0));
  ThreadPool pool(static_cast<int>(state.range(1)));
  LightningProblem problem(kHeads, sequences, 1, true);
  const double update = UpdateBandwidth(&pool);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::LightningAttention(problem.args, &pool); });
  const double rate = 2.0 * problem.states.size() * sizeof(float) / best.wall_s;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["of_update"] = rate / update;
  state.SetLabel(cpu::LinearIsaName());
}
BENCHMARK(BM_LightningDecode)
    ->ArgNames({"sequences", "threads"})
    ->ArgsProduct({{1, 16}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// Per row and head: q k^T and its product with v over a chunk of 64, q S and
// the update of S.
void BM_LightningPrompt(benchmark::State& state) {
  constexpr int kHeads = 8;
  const int rows = static_cast<int>(state.range(0));
  ThreadPool pool(static_cast<int>(state.range(1)));
  LightningProblem problem(kHeads, 1, rows, false);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::LightningAttention(problem.args, &pool); });
  const double flops =
      2.0 * rows * kHeads * (2.0 * 64 * kDim + 2.0 * kDim * kDim);
  state.counters["GFLOP/s"] = flops / best.wall_s / 1e9;
  state.SetLabel(cpu::LinearIsaName());
}
BENCHMARK(BM_LightningPrompt)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{512}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

struct PagedProblem {
  PagedProblem(int heads, int kv_heads, int sequences, int rows, int position,
               bool decode, DType kv_dtype)
      : pages((position + rows + kPageTokens - 1) / kPageTokens),
        segments(sequences, rows, position, decode, pages),
        qkv(Values(int64_t{sequences} * rows * (heads + 2 * kv_heads) * kDim)),
        weight(kDim, 1.0f),
        cos(int64_t{sequences} * rows * kHalf, 0.6f),
        sin(int64_t{sequences} * rows * kHalf, 0.8f),
        kv_bytes(sequences * pages * kv_heads * kPageTokens * kDim *
                 static_cast<int64_t>(SizeOf(kv_dtype))),
        k(kv_bytes, 0x3c),
        v(kv_bytes, 0x3c),
        out(int64_t{sequences} * rows * heads * kDim) {
    args.qkv = qkv.data();
    args.rows = int64_t{sequences} * rows;
    args.num_heads = heads;
    args.num_kv_heads = kv_heads;
    args.head_dim = kDim;
    args.q_norm = args.k_norm = weight.data();
    args.eps = 1e-6f;
    args.rope = {cos.data(), sin.data(), kHalf};
    args.segments = segments.view;
    args.k_pages = k.data();
    args.v_pages = v.data();
    args.kv_dtype = kv_dtype;
    args.out = out.data();
  }

  int64_t pages;
  Segments segments;
  std::vector<float> qkv, weight, cos, sin;
  int64_t kv_bytes;
  std::vector<uint8_t> k, v;
  std::vector<float> out;
  PagedAttentionArgs args;
};

// 4 sequences of 8,192 tokens, 4 KV heads: 64 MiB of bf16 pages.
void BM_PagedDecode(benchmark::State& state) {
  const int heads = static_cast<int>(state.range(0));
  ThreadPool pool(static_cast<int>(state.range(1)));
  PagedProblem problem(heads, 4, 4, 1, 8191, true, DType::kBFloat16);
  const double read = ReadBandwidth(&pool);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::PagedAttention(problem.args, &pool); });
  const double rate = 2.0 * static_cast<double>(problem.kv_bytes) / best.wall_s;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["of_read"] = rate / read;
  state.counters["GFLOP/s"] = 4.0 * 4 * 8192 * heads * kDim / best.wall_s / 1e9;
  state.SetLabel(cpu::LinearIsaName());
}
BENCHMARK(BM_PagedDecode)
    ->ArgNames({"heads", "threads"})
    ->ArgsProduct({{4, 16, 32}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// A prompt of `rows` rows: each row sees half of them on average.
void BM_PagedPrompt(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0));
  constexpr int kHeads = 8;
  ThreadPool pool(static_cast<int>(state.range(1)));
  PagedProblem problem(kHeads, 1, 1, rows, 0, false, DType::kBFloat16);
  const BestTimes best =
      MeasureBest(state, [&] { cpu::PagedAttention(problem.args, &pool); });
  state.counters["GFLOP/s"] =
      4.0 * rows * (rows + 1) / 2 * kHeads * kDim / best.wall_s / 1e9;
  state.SetLabel(cpu::LinearIsaName());
}
BENCHMARK(BM_PagedPrompt)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1024}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ring

BENCHMARK_MAIN();
