// A block owns a row of the slice and its threads stride over the columns;
// merging, narrowing and finishing take a thread or a block per row. Sums that
// decide on tokens are of integers, so their order does not matter; sum_exp is
// added in a fixed order of threads. Bound: memory, the logits read once or
// twice; with one row a single multiprocessor's share of it.
#include <limits>

#include "kernels/base/random.h"
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/sampling/sampling.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kRowThreads = 128;  // of kernels with a thread per row

__device__ int64_t OpenColumns(const LogitsSlice& slice) {
  const int64_t open = int64_t{slice.num_token_ids} - slice.vocab_begin;
  return open < 0 ? 0 : min(open, slice.cols);
}

// A row from which no token can be drawn.
__device__ bool IsBad(const RowStats& stats) {
  return stats.bad != 0 || stats.argmax < 0 || stats.max == -INFINITY;
}

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

// Folds what the threads hold into thread 0's value: merge(a, b) returns the
// result of a and b, b of a higher thread. Called by the whole block.
template <typename T, typename Merge>
__device__ T FoldBlock(T mine, Merge merge) {
  // Raw, since shared memory takes no objects that have to be constructed.
  __shared__ __align__(16) unsigned char memory[kThreads * sizeof(T)];
  T* const shared = reinterpret_cast<T*>(memory);
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (int stride = kThreads / 2; stride > 0; stride /= 2) {
    if (threadIdx.x < stride) {
      shared[threadIdx.x] =
          merge(shared[threadIdx.x], shared[threadIdx.x + stride]);
    }
    __syncthreads();
  }
  return shared[0];
}

// The largest logit of some columns, the lowest of them that has it, and
// whether any is NaN or +inf.
struct Largest {
  float max = -INFINITY;
  int32_t column = -1;
  int32_t bad = 0;
};

__global__ void RowStatistics(LogitStatsArgs args) {
  const int64_t row = blockIdx.x;
  const float* const logits = args.slice.logits + row * args.slice.cols;
  const int64_t columns = OpenColumns(args.slice);
  Largest mine;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
    const float x = logits[i];
    if (!(x < INFINITY)) {
      mine.bad = 1;
    } else if (mine.column < 0 || x > mine.max) {
      mine.max = x;
      mine.column = static_cast<int32_t>(i);
    }
  }
  const Largest all = FoldBlock(mine, [](const Largest& a, const Largest& b) {
    Largest best = a;
    const bool b_first =
        b.column >= 0 && (a.column < 0 || b.max > a.max ||
                          (b.max == a.max && b.column < a.column));
    if (b_first) best = b;
    best.bad = a.bad | b.bad;
    return best;
  });
  double sum = 0;
  if (all.bad == 0 && all.max > -INFINITY) {
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      sum += expf(logits[i] - all.max);
    }
  }
  sum = FoldBlock(sum, [](double a, double b) { return a + b; });
  if (threadIdx.x != 0) return;
  RowStats stats;
  stats.max = all.max;
  stats.argmax =
      all.column < 0 || all.bad ? -1 : args.slice.vocab_begin + all.column;
  stats.sum_exp = sum;
  stats.bad = all.bad;
  args.stats[row] = stats;
}

// Merges b, of higher ids, into a.
__device__ void Merge(const RowStats& b, RowStats* a) {
  a->bad |= b.bad;
  if (b.argmax < 0) return;
  if (a->argmax < 0) {
    const int32_t bad = a->bad;
    *a = b;
    a->bad |= bad;
    return;
  }
  const double max = fmax(double{a->max}, double{b.max});
  // A maximum of -inf has the sum 0: there is nothing to rescale.
  const double a_scale = a->max == -INFINITY ? 0 : exp(a->max - max);
  const double b_scale = b.max == -INFINITY ? 0 : exp(b.max - max);
  a->sum_exp = a->sum_exp * a_scale + b.sum_exp * b_scale;
  if (b.max > a->max) {
    a->max = b.max;
    a->argmax = b.argmax;
  }
}

__global__ void MergeRowStats(MergeStatsArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (row >= args.rows) return;
  RowStats stats;
  stats.max = -INFINITY;
  stats.argmax = -1;
  for (int rank = 0; rank < args.ranks; ++rank) {
    Merge(args.parts[rank * args.rows + row], &stats);
  }
  args.stats[row] = stats;
  args.thresholds[row] = Threshold();
}

__global__ void CountKeys(ThresholdHistogramArgs args) {
  __shared__ unsigned long long counts[kThresholdBins];
  const int64_t row = blockIdx.x;
  const SamplingRow params = args.params[row];
  for (int bin = threadIdx.x; bin < kThresholdBins; bin += kThreads) {
    counts[bin] = 0;
  }
  __syncthreads();
  if (UsesFilter(params, args.kind) && !IsBad(args.stats[row])) {
    const Threshold threshold = args.thresholds[row];
    const float max = args.stats[row].max;
    const float* const logits = args.slice.logits + row * args.slice.cols;
    const int64_t columns = OpenColumns(args.slice);
    // The bits above the ones that this round looks at; none in the first.
    const uint32_t known =
        args.shift == 24 ? 0 : ~uint32_t{0} << (args.shift + 8);
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      const uint32_t key = OrderedKey(logits[i]);
      if (key < threshold.min_key || (key & known) != threshold.prefix) {
        continue;
      }
      atomicAdd(&counts[(key >> args.shift) % kThresholdBins],
                args.kind == ThresholdKind::kTopK
                    ? 1ull
                    : FixedMass(logits[i], max, params.temperature));
    }
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kThresholdBins; bin += kThreads) {
    args.bins[row * kThresholdBins + bin] = counts[bin];
  }
}

// A block owns a row, a thread one bin; thread 0 walks the bins.
__global__ void NarrowRow(NarrowThresholdArgs args) {
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

__global__ void DrawRow(DrawTokensArgs args) {
  const int64_t row = blockIdx.x;
  const SamplingRow params = args.params[row];
  const RowStats stats = args.stats[row];
  TokenDraw best;
  best.score = -std::numeric_limits<double>::infinity();
  if (!IsGreedy(params) && !IsBad(stats)) {
    const uint32_t min_key = MinKey(params, stats, args.thresholds[row]);
    const float* const logits = args.slice.logits + row * args.slice.cols;
    const int64_t columns = OpenColumns(args.slice);
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      if (OrderedKey(logits[i]) < min_key) continue;
      const double scaled = double{logits[i]} / params.temperature;
      const int32_t id = args.slice.vocab_begin + static_cast<int32_t>(i);
      const auto words =
          Philox4x32({static_cast<uint32_t>(id),
                      static_cast<uint32_t>(params.position), 0, 0},
                     {static_cast<uint32_t>(params.seed),
                      static_cast<uint32_t>(params.seed >> 32)});
      const uint64_t bits = uint64_t{words[0]} << 32 | words[1];
      // No more than the noise of these bits: most ids cannot win.
      const double bound = (__clzll(bits) + 1) * 0.6931471806;
      if (scaled + bound <= best.score) continue;
      const double score = scaled + GumbelNoise(bits);
      if (score > best.score) best = {score, id, logits[i]};
    }
  }
  best = FoldBlock(best, Better);
  if (threadIdx.x == 0) args.draws[row] = best.id < 0 ? TokenDraw() : best;
}

__global__ void FinishRow(FinishTokensArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (row >= args.rows) return;
  const RowStats stats = args.stats[row];
  TokenDraw best;
  if (IsGreedy(args.params[row])) {
    best.id = stats.argmax;
    best.logit = stats.max;
  } else {
    for (int rank = 0; rank < args.ranks; ++rank) {
      best = Better(best, args.draws[rank * args.rows + row]);
    }
  }
  SampledToken token;
  if (!IsBad(stats) && best.id >= 0) {
    token.id = best.id;
    token.logprob =
        static_cast<float>(double{best.logit} - stats.max - log(stats.sum_exp));
  }
  args.tokens[row] = token;
  args.ids[row] = token.id;
}

}  // namespace

void LogitStats(const LogitStatsArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  RowStatistics<<<Blocks(args.slice.rows, 1), kThreads, 0, stream->get()>>>(
      args);
  CheckLaunch("RowStatistics");
}

void MergeStats(const MergeStatsArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  MergeRowStats<<<Blocks(args.rows, kRowThreads), kRowThreads, 0,
                  stream->get()>>>(args);
  CheckLaunch("MergeRowStats");
}

void ThresholdHistogram(const ThresholdHistogramArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  CountKeys<<<Blocks(args.slice.rows, 1), kThreads, 0, stream->get()>>>(args);
  CheckLaunch("CountKeys");
}

void NarrowThreshold(const NarrowThresholdArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  NarrowRow<<<Blocks(args.rows, 1), kThresholdBins, 0, stream->get()>>>(args);
  CheckLaunch("NarrowRow");
}

void DrawTokens(const DrawTokensArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  DrawRow<<<Blocks(args.slice.rows, 1), kThreads, 0, stream->get()>>>(args);
  CheckLaunch("DrawRow");
}

void FinishTokens(const FinishTokensArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  FinishRow<<<Blocks(args.rows, kRowThreads), kRowThreads, 0, stream->get()>>>(
      args);
  CheckLaunch("FinishRow");
}

}  // namespace ring::cuda
