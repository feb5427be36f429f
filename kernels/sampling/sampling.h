// Drawing tokens from logits whose vocabulary is sliced over ranks.
//
// No op gathers the vocabulary: each reads this rank's slice and writes a few
// bytes a row, which a collective gathers; the next op merges the ranks' parts
// in rank order, the same on every rank. worker/sampler runs the sequence:
//
//   LogitStats -> gather -> MergeStats            largest logit, log-sum-exp
//   4 rounds of ThresholdHistogram -> gather -> NarrowThreshold     top-k
//   4 rounds of ThresholdHistogram -> gather -> NarrowThreshold     top-p
//   DrawTokens -> gather -> FinishTokens
//
// A filter keeps the ids whose logit is at least a threshold, so ids of equal
// logit stay or go together. Thresholds are found exactly: logits map to 32-bit
// keys of the same order, and each round fixes 8 bits of the threshold's key
// from a histogram of integers (ids for top-k, fixed-point mass for top-p).
// Integer sums do not depend on order, so neither the slicing of the
// vocabulary nor the batch changes a token.
//
// Biases and penalties come before all that (logit_adjustment.h): the ops then
// read adjusted logits, and LogitStats runs over the raw ones as well, which
// log probabilities are of.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace ring {

class ThreadPool;

// How one row's token is drawn. Plain data, copied to the device.
struct SamplingRow {
  float temperature = 0;  // 0: greedy, the filters and the seed are not used
  int32_t top_k = 0;      // keep the k largest; 0: all; 1 is greedy
  float top_p = 1;        // keep the smallest set of this mass; >= 1: all
  float min_p = 0;        // keep p >= min_p * largest p; 0: all
  uint64_t seed = 0;      // random numbers depend on seed, position and id only
  int32_t position = 0;   // that the drawn token will have in its sequence
  int32_t num_top = 0;    // likeliest ids to report besides (top_logits.h)
  // >= 0: this id is the token, whatever its probability, which is reported;
  // the rest but num_top is not used.
  int32_t given = -1;
};
// Order of the filters: temperature, top-k, top-p (over what top-k left, at
// this temperature), min-p. The same order as Hugging Face's and vLLM's.

constexpr bool IsGiven(const SamplingRow& row) { return row.given >= 0; }
constexpr bool IsGreedy(const SamplingRow& row) {
  return !IsGiven(row) && (row.temperature <= 0 || row.top_k == 1);
}
constexpr bool UsesTopK(const SamplingRow& row) {
  return !IsGiven(row) && !IsGreedy(row) && row.top_k > 1;
}
constexpr bool UsesTopP(const SamplingRow& row) {
  return !IsGiven(row) && !IsGreedy(row) && row.top_p < 1;
}

struct SampledToken {
  int32_t id = -1;  // -1: no token, since a logit was NaN or +inf, or none was
                    // finite
  float logprob = 0;  // ln softmax(raw logits)[id], before temperature, filters
                      // and adjustments
};

// This rank's part of the logits of all sampled rows.
struct LogitsSlice {
  const float* logits = nullptr;  // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;           // local vocabulary, may be 0
  int32_t vocab_begin = 0;    // id of column 0
  int32_t num_token_ids = 0;  // ids from here on are never drawn
  // [rows, cols] What the model gave, where `logits` are adjusted; null: the
  // same.
  const float* raw = nullptr;
};

constexpr const float* RawLogits(const LogitsSlice& slice) {
  return slice.raw != nullptr ? slice.raw : slice.logits;
}

// Columns of the slice that may be drawn.
constexpr int64_t OpenColumns(const LogitsSlice& slice) {
  const int64_t open = int64_t{slice.num_token_ids} - slice.vocab_begin;
  return open < 0 ? 0 : (open < slice.cols ? open : slice.cols);
}

// Largest logit and sum of exponentials of one row, over a slice or, merged,
// over all of them.
struct RowStats {
  float max = 0;       // of the ids that may be drawn; -inf if there are none
  int32_t argmax = 0;  // the lowest id that has it, -1 if there is none
  double sum_exp = 0;  // of exp(logit - max)
  int32_t bad = 0;     // 1: a logit is NaN or +inf
  float raw = 0;       // raw logit of argmax
};

// A row from which no token can be drawn.
constexpr bool IsBad(const RowStats& stats) {
  return stats.bad != 0 || stats.argmax < 0 ||
         stats.max == -std::numeric_limits<float>::infinity();
}

// Keys order like the logits; -0 and +0 share one.
constexpr uint32_t OrderedKey(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
// The logit, but for the sign of 0.
constexpr float LogitOfKey(uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu
                                                       : ~key);
}

// A search for the key of the smallest logit that a row keeps.
struct Threshold {
  uint32_t min_key = 0;  // of the filters done so far: ids below are out
  uint32_t prefix = 0;   // bits of the key found so far in the running search
  uint64_t target = 0;   // count or mass to be covered from this prefix down
};

enum class ThresholdKind { kTopK, kTopP };
inline constexpr int kThresholdBins = 256;
inline constexpr int kThresholdRounds = 4;

// The best id of a row among those drawn from a slice.
struct TokenDraw {
  double score = 0;  // logit / temperature + Gumbel noise
  int32_t id = -1;   // -1: no id of this slice may be drawn
  float raw = 0;     // raw logit of id
};

// That of a row whose token is given: an id of some slice.
constexpr TokenDraw GivenDraw(const LogitsSlice& slice, int64_t row,
                              int32_t given) {
  TokenDraw draw;
  const int64_t column = int64_t{given} - slice.vocab_begin;
  if (column < 0 || column >= OpenColumns(slice)) return draw;
  draw.id = given;
  draw.raw = RawLogits(slice)[row * slice.cols + column];
  return draw;
}

struct LogitStatsArgs {
  LogitsSlice slice;
  RowStats* stats = nullptr;  // [rows]
};
struct MergeStatsArgs {
  const RowStats* parts = nullptr;  // [ranks, rows]
  int ranks = 1;
  int64_t rows = 0;
  RowStats* stats = nullptr;        // [rows]
  Threshold* thresholds = nullptr;  // [rows], reset to "keep all"
};

// One round of the search: bits [shift, shift + 8) of the key, for shift 24,
// 16, 8 and 0 in turn. Rows that do not use the filter are skipped.
struct ThresholdHistogramArgs {
  LogitsSlice slice;
  const SamplingRow* params = nullptr;    // [rows]
  const RowStats* stats = nullptr;        // [rows], merged
  const Threshold* thresholds = nullptr;  // [rows]
  ThresholdKind kind = ThresholdKind::kTopK;
  int shift = 24;
  uint64_t* bins = nullptr;  // [rows, kThresholdBins]
};
struct NarrowThresholdArgs {
  const SamplingRow* params = nullptr;  // [rows]
  const uint64_t* bins = nullptr;       // [ranks, rows, kThresholdBins]
  int ranks = 1;
  int64_t rows = 0;
  ThresholdKind kind = ThresholdKind::kTopK;
  int shift = 24;
  Threshold* thresholds = nullptr;  // [rows]; shift 0 raises min_key
};

struct DrawTokensArgs {
  LogitsSlice slice;
  const SamplingRow* params = nullptr;    // [rows]
  const RowStats* stats = nullptr;        // [rows], merged
  const Threshold* thresholds = nullptr;  // [rows]
  TokenDraw* draws = nullptr;             // [rows]; greedy rows are skipped
};
struct FinishTokensArgs {
  const SamplingRow* params = nullptr;  // [rows]
  const RowStats* stats = nullptr;      // [rows], merged
  const RowStats* raw_stats = nullptr;  // the same, of the raw logits
  // [ranks, rows]; may be null if all rows are greedy.
  const TokenDraw* draws = nullptr;
  int ranks = 1;
  int64_t rows = 0;
  SampledToken* tokens = nullptr;  // [rows]
  int32_t* ids = nullptr;          // [rows] the tokens' ids alone
};

namespace cpu {
void LogitStats(const LogitStatsArgs& args, ThreadPool* pool);
void MergeStats(const MergeStatsArgs& args, ThreadPool* pool);
void ThresholdHistogram(const ThresholdHistogramArgs& args, ThreadPool* pool);
void NarrowThreshold(const NarrowThresholdArgs& args, ThreadPool* pool);
void DrawTokens(const DrawTokensArgs& args, ThreadPool* pool);
void FinishTokens(const FinishTokensArgs& args, ThreadPool* pool);
}  // namespace cpu
namespace cuda {
class Stream;
void LogitStats(const LogitStatsArgs& args, Stream* stream);
void MergeStats(const MergeStatsArgs& args, Stream* stream);
void ThresholdHistogram(const ThresholdHistogramArgs& args, Stream* stream);
void NarrowThreshold(const NarrowThresholdArgs& args, Stream* stream);
void DrawTokens(const DrawTokensArgs& args, Stream* stream);
void FinishTokens(const FinishTokensArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
