// A row's columns are cut into strips, a block takes one and leaves what it
// found in scratch memory; the last block of a row, which a counter tells,
// folds the strips'. Merging, narrowing and finishing take a thread or a block
// per row. Sums that decide on tokens are of integers, so their order does not
// matter; sum_exp is added in an order that depends on the number of columns
// alone. Bound: memory, the logits read once; drawing: the random numbers'
// integer arithmetic.
#include <algorithm>
#include <limits>

#include "kernels/base/random.h"
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/sampling/row_strips.cuh"
#include "kernels/sampling/sampling.h"

namespace ring::cuda {
namespace {

// Strips of the histograms, which are long to fold.
constexpr int64_t kCountedColumns = 2 * kStripColumns;
constexpr int kRowThreads = 128;  // of kernels with a thread per row

__device__ bool UsesFilter(const SamplingRow& row, ThresholdKind kind) {
  return kind == ThresholdKind::kTopK ? UsesTopK(row) : UsesTopP(row);
}

// exp((logit - max) / temperature) in units of 2^-40.
__device__ uint64_t FixedMass(float logit, float max, float temperature) {
  const double x = (double{logit} - max) / temperature;
  if (!(x > -29)) return 0;  // exp(-29) < 2^-41
  return static_cast<uint64_t>(exp(x) * 0x1p40 + 0.5);
}

// The lowest key that min-p and the searches keep.
__device__ uint32_t MinKey(const SamplingRow& row, const RowStats& stats,
                           const Threshold& threshold) {
  if (!(row.min_p > 0)) return threshold.min_key;
  const double logit =
      stats.max + row.temperature * log(double{fminf(row.min_p, 1.0f)});
  return max(threshold.min_key, OrderedKey(static_cast<float>(logit)));
}

__device__ RowStats NoStats() {
  RowStats stats;
  stats.max = -INFINITY;
  stats.argmax = -1;
  return stats;
}

// The statistics of the union of two sets of ids, each with at most one sum.
__device__ RowStats Merge(const RowStats& a, const RowStats& b) {
  const bool b_first =
      b.argmax >= 0 && (a.argmax < 0 || b.max > a.max ||
                        (b.max == a.max && b.argmax < a.argmax));
  RowStats merged = b_first ? b : a;
  const RowStats& other = b_first ? a : b;
  // A maximum of -inf has the sum 0: there is nothing to rescale.
  if (other.argmax >= 0 && other.max > -INFINITY) {
    merged.sum_exp += other.sum_exp * exp(double{other.max} - merged.max);
  }
  merged.bad = a.bad | b.bad;
  return merged;
}

__global__ void __launch_bounds__(kThreads)
    StripStatistics(LogitStatsArgs args, Strips<RowStats> strips) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t row = blockIdx.y;
  const float* const logits = args.slice.logits + row * args.slice.cols;
  const int64_t columns = OpenColumns(args.slice);
  const int64_t begin = blockIdx.x * kStripColumns + threadIdx.x;
  float values[kEach];
  uint64_t mine = 0;
  bool bad = false;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    values[k] = i < columns ? logits[i] : -INFINITY;
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    if (!(values[k] < INFINITY)) {
      bad = true;
    } else if (i < columns) {
      mine = max(mine, Ranked(values[k], i));
    }
  }
  RowStats all = NoStats();
  all.bad = __syncthreads_or(bad);
  const uint64_t largest =
      FoldBlock(mine, [](uint64_t a, uint64_t b) { return max(a, b); });
  if (largest != 0) {
    const int64_t column = ~static_cast<uint32_t>(largest);
    all.max = logits[column];
    all.argmax = args.slice.vocab_begin + static_cast<int32_t>(column);
    all.raw = RawLogits(args.slice)[row * args.slice.cols + column];
  }
  float sum = 0;
  if (all.bad == 0 && all.max > -INFINITY) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) sum += expf(values[k] - all.max);
  }
  all.sum_exp =
      FoldBlock(double{sum}, [](double a, double b) { return a + b; });
  if (!HandIn(strips, all)) return;
  RowStats stats = NoStats();
  for (int strip = threadIdx.x; strip < gridDim.x; strip += kThreads) {
    stats = Merge(stats, strips.parts[row * gridDim.x + strip]);
  }
  stats = FoldBlock(stats, Merge);
  if (threadIdx.x != 0) return;
  if (stats.bad != 0) {
    stats.argmax = -1;
    stats.sum_exp = 0;
  }
  args.stats[row] = stats;
}

__global__ void MergeRowStats(MergeStatsArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t row = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (row >= args.rows) return;
  RowStats stats = NoStats();
  for (int rank = 0; rank < args.ranks; ++rank) {
    stats = Merge(stats, args.parts[rank * args.rows + row]);
  }
  args.stats[row] = stats;
  args.thresholds[row] = Threshold();
}

struct Bins {
  unsigned long long counts[kThresholdBins];
};
static_assert(kThresholdBins == kThreads);

__global__ void __launch_bounds__(kThreads)
    CountKeys(ThresholdHistogramArgs args, Strips<Bins> strips) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  __shared__ Bins bins;
  __shared__ bool last;
  const int64_t row = blockIdx.y;
  const SamplingRow params = args.params[row];
  uint64_t* const to = args.bins + row * kThresholdBins + threadIdx.x;
  if (!UsesFilter(params, args.kind) || IsBad(args.stats[row])) {
    if (blockIdx.x == 0) *to = 0;
    return;
  }
  bins.counts[threadIdx.x] = 0;
  __syncthreads();
  const Threshold threshold = args.thresholds[row];
  const float max = args.stats[row].max;
  const float* const logits = args.slice.logits + row * args.slice.cols;
  const int64_t begin = blockIdx.x * kCountedColumns;
  const int64_t end = min(begin + kCountedColumns, OpenColumns(args.slice));
  // The bits above the ones that this round looks at; none in the first.
  const uint32_t known =
      args.shift == 24 ? 0 : ~uint32_t{0} << (args.shift + 8);
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const uint32_t key = OrderedKey(logits[i]);
    if (key < threshold.min_key || (key & known) != threshold.prefix) continue;
    atomicAdd(&bins.counts[(key >> args.shift) % kThresholdBins],
              args.kind == ThresholdKind::kTopK
                  ? 1ull
                  : FixedMass(logits[i], max, params.temperature));
  }
  __syncthreads();
  Bins* const parts = strips.parts + row * gridDim.x;
  parts[blockIdx.x].counts[threadIdx.x] = bins.counts[threadIdx.x];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(strips.counters + row, 1u) == gridDim.x - 1;
    if (last) strips.counters[row] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  uint64_t sum = 0;
#pragma unroll 4
  for (int strip = 0; strip < gridDim.x; ++strip) {
    sum += parts[strip].counts[threadIdx.x];
  }
  *to = sum;
}

// A block owns a row, a thread one bin; thread 0 walks the bins.
__global__ void NarrowRow(NarrowThresholdArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  __shared__ uint64_t bins[kThresholdBins];
  const int64_t row = blockIdx.x;
  const SamplingRow params = args.params[row];
  if (!UsesFilter(params, args.kind)) return;
  uint64_t mine = 0;
  for (int rank = 0; rank < args.ranks; ++rank) {
    mine += args.bins[(rank * args.rows + row) * kThresholdBins + threadIdx.x];
  }
  bins[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  Threshold threshold = args.thresholds[row];
  if (args.shift == 24) {
    uint64_t total = 0;
    for (int bin = 0; bin < kThresholdBins; ++bin) total += bins[bin];
    const uint64_t wanted =
        args.kind == ThresholdKind::kTopK
            ? static_cast<uint64_t>(params.top_k)
            : static_cast<uint64_t>(
                  ceil(fmaxf(params.top_p, 0.0f) * static_cast<double>(total)));
    const uint64_t most = total > 1 ? total : 1;
    threshold.target = wanted < 1 ? 1 : (wanted > most ? most : wanted);
  }
  // The bin in which the sum from above reaches the target.
  int bin = kThresholdBins - 1;
  while (bin > 0 && bins[bin] < threshold.target) {
    threshold.target -= bins[bin];
    --bin;
  }
  threshold.prefix |= static_cast<uint32_t>(bin) << args.shift;
  if (args.shift == 0) {
    threshold.min_key = max(threshold.min_key, threshold.prefix);
    threshold.prefix = 0;
  }
  args.thresholds[row] = threshold;
}

// Equal scores go to the lower id.
__device__ TokenDraw Better(const TokenDraw& a, const TokenDraw& b) {
  if (a.id < 0) return b;
  if (b.id < 0) return a;
  if (a.score != b.score) return b.score > a.score ? b : a;
  return b.id < a.id ? b : a;
}

// -ln(E) with E = -ln(1 - u) exponential, u made of 64 random bits.
__device__ double GumbelNoise(uint64_t bits) {
  const double u = (static_cast<double>(bits) + 0.5) * 0x1p-64;
  return -log(-log1p(-fmin(u, 1 - 0x1p-53)));
}

__global__ void __launch_bounds__(kThreads)
    DrawStrip(DrawTokensArgs args, Strips<TokenDraw> strips) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t row = blockIdx.y;
  const SamplingRow params = args.params[row];
  const RowStats stats = args.stats[row];
  if (IsGiven(params) || IsGreedy(params) || IsBad(stats)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      args.draws[row] = IsGiven(params)
                            ? GivenDraw(args.slice, row, params.given)
                            : TokenDraw();
    }
    return;
  }
  const double temperature = params.temperature;
  const float inverse = 1.0f / params.temperature;
  const auto noise_bits = [&](int32_t id) {
    const auto words =
        Philox4x32({static_cast<uint32_t>(id),
                    static_cast<uint32_t>(params.position), 0, 0},
                   {static_cast<uint32_t>(params.seed),
                    static_cast<uint32_t>(params.seed >> 32)});
    return uint64_t{words[0]} << 32 | words[1];
  };
  // The score of the row's largest logit, which is never filtered out: what
  // cannot reach it cannot win.
  __shared__ float to_reach;
  if (threadIdx.x == 0) {
    to_reach = static_cast<float>(double{stats.max} / temperature +
                                  GumbelNoise(noise_bits(stats.argmax)));
  }
  TokenDraw best;
  best.score = -std::numeric_limits<double>::infinity();
  const uint32_t min_key = MinKey(params, stats, args.thresholds[row]);
  const float* const logits = args.slice.logits + row * args.slice.cols;
  const float* const raw = RawLogits(args.slice) + row * args.slice.cols;
  const int64_t columns = OpenColumns(args.slice);
  const int64_t begin = blockIdx.x * kStripColumns + threadIdx.x;
  float values[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    values[k] = i < columns ? logits[i] : -INFINITY;
  }
  __syncthreads();
  const float reach = to_reach;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    if (i >= columns || OrderedKey(values[k]) < min_key) continue;
    const int32_t id = args.slice.vocab_begin + static_cast<int32_t>(i);
    const uint64_t bits = noise_bits(id);
    // No more than the noise of these bits, and some for fp32's rounding.
    const float scaled = values[k] * inverse;
    const float bound = (__clzll(bits) + 1) * 0.693148f;
    const float slack = 1e-3f + 1e-5f * (fabsf(scaled) + fabsf(reach));
    if (scaled + bound + slack < reach) continue;
    const double score = double{values[k]} / temperature + GumbelNoise(bits);
    if (score > best.score) best = {score, id, raw[i]};
  }
  best = FoldBlock(best, Better);
  if (!HandIn(strips, best)) return;
  best = TokenDraw();  // of no id
  for (int strip = threadIdx.x; strip < gridDim.x; strip += kThreads) {
    best = Better(best, strips.parts[row * gridDim.x + strip]);
  }
  best = FoldBlock(best, Better);
  if (threadIdx.x == 0) args.draws[row] = best.id < 0 ? TokenDraw() : best;
}

__global__ void FinishRow(FinishTokensArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t row = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (row >= args.rows) return;
  const RowStats stats = args.stats[row];
  const RowStats raw = args.raw_stats[row];
  TokenDraw best;
  if (IsGreedy(args.params[row])) {
    best.id = stats.argmax;
    best.raw = stats.raw;
  } else {
    for (int rank = 0; rank < args.ranks; ++rank) {
      best = Better(best, args.draws[rank * args.rows + row]);
    }
  }
  SampledToken token;
  if (!IsBad(stats) && !IsBad(raw) && best.id >= 0) {
    token.id = best.id;
    token.logprob =
        static_cast<float>(double{best.raw} - raw.max - log(raw.sum_exp));
  }
  args.tokens[row] = token;
  args.ids[row] = token.id;
}

}  // namespace

void LogitStats(const LogitStatsArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  const dim3 grid = StripGrid(args.slice, kStripColumns);
  LaunchDependent(StripStatistics, grid, kThreads, 0, stream, args,
                  MakeStrips<RowStats>(grid, stream));
}

void MergeStats(const MergeStatsArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  LaunchDependent(MergeRowStats, Blocks(args.rows, kRowThreads), kRowThreads, 0,
                  stream, args);
}

void ThresholdHistogram(const ThresholdHistogramArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  const dim3 grid = StripGrid(args.slice, kCountedColumns);
  LaunchDependent(CountKeys, grid, kThreads, 0, stream, args,
                  MakeStrips<Bins>(grid, stream));
}

void NarrowThreshold(const NarrowThresholdArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  LaunchDependent(NarrowRow, Blocks(args.rows, 1), kThresholdBins, 0, stream,
                  args);
}

void DrawTokens(const DrawTokensArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  const dim3 grid = StripGrid(args.slice, kStripColumns);
  LaunchDependent(DrawStrip, grid, kThreads, 0, stream, args,
                  MakeStrips<TokenDraw>(grid, stream));
}

void FinishTokens(const FinishTokensArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  LaunchDependent(FinishRow, Blocks(args.rows, kRowThreads), kRowThreads, 0,
                  stream, args);
}

}  // namespace ring::cuda
