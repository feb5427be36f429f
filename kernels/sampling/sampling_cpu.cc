// A row's slice is cut into chunks of columns that threads take on demand; the
// chunks' results are merged in order. Only sum_exp is a floating-point sum,
// so only the log probability can depend, in its last bits, on the slicing.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/base/check.h"
#include "kernels/base/random.h"
#include "kernels/base/thread_pool.h"
#include "kernels/sampling/sampling.h"
#include "kernels/simd/vec.h"

namespace ring::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kChunkColumns = 8192;

// Calls body(row, chunk, begin, end) for all chunks of all rows, in parallel.
// Returns the chunks a row has.
int64_t NumChunks(const LogitsSlice& slice) {
  return (OpenColumns(slice) + kChunkColumns - 1) / kChunkColumns;
}
void ForChunks(const LogitsSlice& slice, ThreadPool* pool,
               absl::FunctionRef<void(int64_t row, int64_t chunk, int64_t begin,
                                      int64_t end)>
                   body) {
  const int64_t chunks = NumChunks(slice);
  const int64_t columns = OpenColumns(slice);
  pool->ParallelFor(slice.rows * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % chunks * kChunkColumns;
      body(i / chunks, i % chunks, begin,
           std::min(begin + kChunkColumns, columns));
    }
  });
}

// Merges b, of higher ids, into a.
void Merge(const RowStats& b, RowStats* a) {
  a->bad |= b.bad;
  if (b.argmax < 0) return;
  if (a->argmax < 0) {
    const int32_t bad = a->bad;
    *a = b;
    a->bad |= bad;
    return;
  }
  const double max = std::max(a->max, b.max);
  // A maximum of -inf has the sum 0: there is nothing to rescale.
  const double a_scale = a->max == -kInfinity ? 0 : std::exp(a->max - max);
  const double b_scale = b.max == -kInfinity ? 0 : std::exp(b.max - max);
  a->sum_exp = a->sum_exp * a_scale + b.sum_exp * b_scale;
  if (b.max > a->max) {
    a->max = b.max;
    a->argmax = b.argmax;
    a->raw = b.raw;
  }
}

constexpr RowStats kEmptyStats = {-kInfinity, -1, 0, 0, 0};

// Largest value and whether any is NaN or +inf.
struct ScanKernel {
  template <int kLanes>
  RING_INLINE static void Run(const float* x, int64_t n, float* max,
                              bool* bad) {
    using Float = simd::FloatVec<kLanes>;
    using Int = simd::IntVec<kLanes>;
    Float largest = Float{} - kInfinity;
    Int good = Int{} - 1;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Float v;
      simd::Load<kLanes>(x + i, v);
      good &= v < kInfinity;
      largest = v > largest ? v : largest;
    }
    *max = -kInfinity;
    *bad = false;
    for (int lane = 0; lane < kLanes; ++lane) {
      *max = std::max(*max, static_cast<float>(largest[lane]));
      *bad |= good[lane] == 0;
    }
    for (; i < n; ++i) {
      *max = x[i] > *max ? x[i] : *max;
      *bad |= !(x[i] < kInfinity);
    }
  }
};

// Sum of exp(x - max).
struct SumExpKernel {
  template <int kLanes>
  RING_INLINE static void Run(const float* x, int64_t n, float max,
                              double* sum) {
    using Float = simd::FloatVec<kLanes>;
    Float lanes = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Float v;
      simd::Load<kLanes>(x + i, v);
      v -= max;
      simd::Exp<kLanes>(v);
      lanes += v;
    }
    *sum = simd::Sum<kLanes>(lanes);
    for (; i < n; ++i) *sum += std::exp(x[i] - max);
  }
};

RowStats StatsOf(const float* logits, const float* raw, int64_t begin,
                 int64_t end, int32_t vocab_begin) {
  RowStats stats = kEmptyStats;
  bool bad = false;
  simd::Dispatch<ScanKernel>(logits + begin, end - begin, &stats.max, &bad);
  stats.bad = bad;
  if (bad) return stats;
  const float* const at = std::find(logits + begin, logits + end, stats.max);
  stats.argmax = vocab_begin + static_cast<int32_t>(at - logits);
  stats.raw = raw[at - logits];
  if (stats.max == -kInfinity) return stats;
  simd::Dispatch<SumExpKernel>(logits + begin, end - begin, stats.max,
                               &stats.sum_exp);
  return stats;
}

bool UsesFilter(const SamplingRow& row, ThresholdKind kind) {
  return kind == ThresholdKind::kTopK ? UsesTopK(row) : UsesTopP(row);
}

// exp((logit - max) / temperature) in units of 2^-40: 2^18 ids of the largest
// mass still fit 64 bits, and a million ids that round to nothing are worth
// less than 5e-7 of the largest.
uint64_t FixedMass(float logit, float max, float temperature) {
  constexpr double kUnit = 0x1p40;
  const double x = (double{logit} - max) / temperature;
  if (!(x > -29)) return 0;  // exp(-29) < 2^-41
  return static_cast<uint64_t>(std::exp(x) * kUnit + 0.5);
}

// The lowest key that min-p and the searches keep.
uint32_t MinKey(const SamplingRow& row, const RowStats& stats,
                const Threshold& threshold) {
  if (!(row.min_p > 0)) return threshold.min_key;
  const double logit =
      stats.max + row.temperature * std::log(std::min(row.min_p, 1.0f));
  return std::max(threshold.min_key, OrderedKey(static_cast<float>(logit)));
}

// Gumbel noise of one id: -ln(E) with E = -ln(1 - u) exponential.
class Gumbel {
 public:
  explicit Gumbel(const SamplingRow& row)
      : key_{static_cast<uint32_t>(row.seed),
             static_cast<uint32_t>(row.seed >> 32)},
        position_(static_cast<uint32_t>(row.position)) {}

  // 64 random bits of which u is made.
  uint64_t Bits(int32_t id) const {
    const auto words =
        Philox4x32({static_cast<uint32_t>(id), position_, 0, 0}, key_);
    return uint64_t{words[0]} << 32 | words[1];
  }
  // No less than the noise of these bits: E >= u >= 2^-(leading zeros + 1).
  static double UpperBound(uint64_t bits) {
    return (std::countl_zero(bits) + 1) * 0.6931471806;
  }
  static double Noise(uint64_t bits) {
    // u in (0, 1), dense near 0, where the largest noise comes from.
    const double u = (static_cast<double>(bits) + 0.5) * 0x1p-64;
    return -std::log(-std::log1p(-std::min(u, 1 - 0x1p-53)));
  }

 private:
  const std::array<uint32_t, 2> key_;
  const uint32_t position_;
};

// Columns [begin, end) of row `r`.
TokenDraw DrawFrom(const LogitsSlice& slice, int64_t r, int64_t begin,
                   int64_t end, const SamplingRow& row, uint32_t min_key) {
  const float* const logits = slice.logits + r * slice.cols;
  const float* const raw = RawLogits(slice) + r * slice.cols;
  TokenDraw best;
  best.score = -std::numeric_limits<double>::infinity();
  const Gumbel gumbel(row);
  for (int64_t i = begin; i < end; ++i) {
    if (OrderedKey(logits[i]) < min_key) continue;
    const double scaled = double{logits[i]} / row.temperature;
    const int32_t id = slice.vocab_begin + static_cast<int32_t>(i);
    const uint64_t bits = gumbel.Bits(id);
    // Most ids cannot win whatever the logarithms are.
    if (scaled + Gumbel::UpperBound(bits) <= best.score) continue;
    const double score = scaled + Gumbel::Noise(bits);
    if (score > best.score) best = {score, id, raw[i]};
  }
  return best;
}

// The better of two draws, b being of higher ids. Equal scores go to the lower
// id.
TokenDraw Better(const TokenDraw& a, const TokenDraw& b) {
  if (a.id < 0) return b;
  return b.id >= 0 && b.score > a.score ? b : a;
}

}  // namespace

void LogitStats(const LogitStatsArgs& args, ThreadPool* pool) {
  const LogitsSlice& slice = args.slice;
  const int64_t chunks = NumChunks(slice);
  std::vector<RowStats> parts(slice.rows * chunks);
  ForChunks(
      slice, pool, [&](int64_t row, int64_t chunk, int64_t begin, int64_t end) {
        parts[row * chunks + chunk] = StatsOf(
            slice.logits + row * slice.cols,
            RawLogits(slice) + row * slice.cols, begin, end, slice.vocab_begin);
      });
  for (int64_t row = 0; row < slice.rows; ++row) {
    args.stats[row] = kEmptyStats;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      Merge(parts[row * chunks + chunk], &args.stats[row]);
    }
  }
}

void MergeStats(const MergeStatsArgs& args, ThreadPool*) {
  for (int64_t row = 0; row < args.rows; ++row) {
    args.stats[row] = kEmptyStats;
    for (int rank = 0; rank < args.ranks; ++rank) {
      Merge(args.parts[rank * args.rows + row], &args.stats[row]);
    }
    args.thresholds[row] = Threshold();
  }
}

void ThresholdHistogram(const ThresholdHistogramArgs& args, ThreadPool* pool) {
  const LogitsSlice& slice = args.slice;
  std::fill(args.bins, args.bins + slice.rows * kThresholdBins, 0);
  pool->ParallelFor(slice.rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const SamplingRow& params = args.params[row];
      if (!UsesFilter(params, args.kind) || IsBad(args.stats[row])) continue;
      const Threshold& threshold = args.thresholds[row];
      uint64_t* const bins = args.bins + row * kThresholdBins;
      const float* const logits = slice.logits + row * slice.cols;
      // The bits above the ones that this round looks at; none in the first.
      const uint32_t known =
          args.shift == 24 ? 0 : ~uint32_t{0} << (args.shift + 8);
      for (int64_t i = 0; i < OpenColumns(slice); ++i) {
        const uint32_t key = OrderedKey(logits[i]);
        if (key < threshold.min_key || (key & known) != threshold.prefix) {
          continue;
        }
        bins[(key >> args.shift) % kThresholdBins] +=
            args.kind == ThresholdKind::kTopK
                ? 1
                : FixedMass(logits[i], args.stats[row].max, params.temperature);
      }
    }
  });
}

void NarrowThreshold(const NarrowThresholdArgs& args, ThreadPool*) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const SamplingRow& params = args.params[row];
    if (!UsesFilter(params, args.kind)) continue;
    Threshold& threshold = args.thresholds[row];
    uint64_t bins[kThresholdBins] = {};
    uint64_t total = 0;
    for (int rank = 0; rank < args.ranks; ++rank) {
      for (int bin = 0; bin < kThresholdBins; ++bin) {
        const uint64_t value =
            args.bins[(rank * args.rows + row) * kThresholdBins + bin];
        bins[bin] += value;
        total += value;
      }
    }
    if (args.shift == 24) {
      const uint64_t wanted =
          args.kind == ThresholdKind::kTopK
              ? static_cast<uint64_t>(params.top_k)
              : static_cast<uint64_t>(std::ceil(std::max(params.top_p, 0.0f) *
                                                static_cast<double>(total)));
      threshold.target =
          std::clamp<uint64_t>(wanted, 1, std::max<uint64_t>(total, 1));
    }
    // The bin in which the sum from above reaches the target.
    int bin = kThresholdBins - 1;
    while (bin > 0 && bins[bin] < threshold.target) {
      threshold.target -= bins[bin];
      --bin;
    }
    threshold.prefix |= static_cast<uint32_t>(bin) << args.shift;
    if (args.shift == 0) {
      threshold.min_key = std::max(threshold.min_key, threshold.prefix);
      threshold.prefix = 0;
    }
  }
}

void DrawTokens(const DrawTokensArgs& args, ThreadPool* pool) {
  const LogitsSlice& slice = args.slice;
  const int64_t chunks = NumChunks(slice);
  std::vector<TokenDraw> parts(slice.rows * chunks);
  ForChunks(
      slice, pool, [&](int64_t row, int64_t chunk, int64_t begin, int64_t end) {
        const SamplingRow& params = args.params[row];
        if (IsGiven(params) || IsGreedy(params) || IsBad(args.stats[row])) {
          return;
        }
        parts[row * chunks + chunk] =
            DrawFrom(slice, row, begin, end, params,
                     MinKey(params, args.stats[row], args.thresholds[row]));
      });
  for (int64_t row = 0; row < slice.rows; ++row) {
    args.draws[row] = TokenDraw();
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      args.draws[row] = Better(args.draws[row], parts[row * chunks + chunk]);
    }
    const int32_t given = args.params[row].given;
    if (given >= 0) args.draws[row] = GivenDraw(slice, row, given);
  }
}

void FinishTokens(const FinishTokensArgs& args, ThreadPool*) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const RowStats& stats = args.stats[row];
    const RowStats& raw = args.raw_stats[row];
    TokenDraw best;
    if (IsGreedy(args.params[row])) {
      best.id = stats.argmax;
      best.raw = stats.raw;
    } else {
      for (int rank = 0; rank < args.ranks; ++rank) {
        best = Better(best, args.draws[rank * args.rows + row]);
      }
    }
    SampledToken& token = args.tokens[row];
    token = SampledToken();
    if (!IsBad(stats) && !IsBad(raw) && best.id >= 0) {
      token.id = best.id;
      token.logprob = static_cast<float>(double{best.raw} - raw.max -
                                         std::log(raw.sum_exp));
    }
    args.ids[row] = token.id;
  }
}

}  // namespace ring::cpu
