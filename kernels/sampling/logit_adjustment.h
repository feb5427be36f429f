// What a request changes about the logits before its token is drawn: biases,
// ids that must not come yet, and penalties for ids that occurred.
//
// For one id, with `count` the times it occurs in the completion so far, in
// vLLM's order:
//
//   x += bias                                      -inf: cannot be drawn
//   if in the prompt or count > 0:                 Keskar et al. 2019, section
//     x = x > 0 ? x / repetition : x * repetition  4.1, signs as Hugging Face
//   if count > 0:
//     x -= frequency * count + presence            as OpenAI
//
// Neither the slicing of the vocabulary nor the device changes a bit.
//
// Counts live on the device, one row of this rank's ids for each sequence, and
// are updated there: the next step may be queued before the host knows this
// step's tokens.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/sampling/sampling.h"

namespace ring {

class ThreadPool;

// How the logits of one row are adjusted. Plain data, copied to the device.
struct LogitAdjustment {
  int32_t sequence = -1;         // row of the tables; -1: logits stay
  float repetition_penalty = 1;  // > 0; 1: none
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t num_edits = 0;  // the first entries of the sequence's list
};

constexpr bool UsesCounts(const LogitAdjustment& row) {
  return row.repetition_penalty != 1 || row.presence_penalty != 0 ||
         row.frequency_penalty != 0;
}

struct LogitEdit {
  int32_t id = 0;
  float bias = 0;
};
// Of one sequence: 1,024 biases, 64 stop ids, and ids that end a sequence.
inline constexpr int kMaxLogitEdits = 1152;

// One id of one sequence: times in the completion, and a bit for the prompt.
using Occurrences = uint32_t;
inline constexpr Occurrences kInPrompt = Occurrences{1} << 31;

// The logit of an id that occurs, biases already added. In fp64 all products
// are exact, so fused or not the result is the same; what fp32 cannot hold
// becomes its largest number, and what is no number stays so.
constexpr float PenalizedLogit(const LogitAdjustment& row, Occurrences seen,
                               float logit) {
  constexpr float kMost = std::numeric_limits<float>::max();
  if (!(logit >= -kMost && logit <= kMost)) return logit;
  double x = logit;
  x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
  if (const Occurrences count = seen & ~kInPrompt; count > 0) {
    x -= double{row.frequency_penalty} * count;
    x -= row.presence_penalty;
  }
  x = x < -kMost ? -kMost : x;
  return static_cast<float>(x > kMost ? kMost : x);
}

struct AdjustLogitsArgs {
  LogitsSlice slice;                             // only read
  const LogitAdjustment* adjustments = nullptr;  // [rows]
  const Occurrences* occurrences = nullptr;      // [sequences, cols]
  // Entries of other ranks' ids are skipped. An id that occurs twice gets the
  // sum; exact if no more than one of its biases is finite.
  const LogitEdit* edits = nullptr;  // [sequences, kMaxLogitEdits]
  float* adjusted = nullptr;  // [rows, cols], other memory than the slice
};

// Notes tokens of sequences; those of other ranks' ids are skipped.
struct CountTokensArgs {
  const int32_t* tokens = nullptr;     // [count] ids; -1: none
  const int32_t* sequences = nullptr;  // [count] rows of the table; -1: none
  int64_t count = 0;
  bool prompt = false;  // all are of the prompt, else of the completion
  int32_t vocab_begin = 0;
  int64_t cols = 0;                    // local vocabulary
  Occurrences* occurrences = nullptr;  // [sequences, cols]
};

namespace cpu {
void AdjustLogits(const AdjustLogitsArgs& args, ThreadPool* pool);
void CountTokens(const CountTokensArgs& args, ThreadPool* pool);
}  // namespace cpu
namespace cuda {
class Stream;
void AdjustLogits(const AdjustLogitsArgs& args, Stream* stream);
void CountTokens(const CountTokensArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
