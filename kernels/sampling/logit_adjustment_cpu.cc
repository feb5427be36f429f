// A thread takes whole rows: most ids of a row occur nowhere, so a row is
// hardly more than a copy.
#include <algorithm>

#include "kernels/base/thread_pool.h"
#include "kernels/sampling/logit_adjustment.h"

namespace ring::cpu {
namespace {

void AddEdits(const LogitsSlice& slice, const LogitEdit* edits, int count,
              float* logits) {
  for (int i = 0; i < count; ++i) {
    const int64_t column = int64_t{edits[i].id} - slice.vocab_begin;
    if (column >= 0 && column < slice.cols) logits[column] += edits[i].bias;
  }
}

void Penalize(const LogitAdjustment& row, const Occurrences* occurrences,
              int64_t cols, float* logits) {
  for (int64_t i = 0; i < cols; ++i) {
    if (occurrences[i] == 0) continue;
    logits[i] = PenalizedLogit(row, occurrences[i], logits[i]);
  }
}

}  // namespace

void AdjustLogits(const AdjustLogitsArgs& args, ThreadPool* pool) {
  const LogitsSlice& slice = args.slice;
  pool->ParallelFor(slice.rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const LogitAdjustment& row = args.adjustments[r];
      float* const adjusted = args.adjusted + r * slice.cols;
      std::copy_n(slice.logits + r * slice.cols, slice.cols, adjusted);
      if (row.sequence < 0) continue;
      AddEdits(slice, args.edits + int64_t{row.sequence} * kMaxLogitEdits,
               row.num_edits, adjusted);
      if (!UsesCounts(row)) continue;
      Penalize(row, args.occurrences + row.sequence * slice.cols, slice.cols,
               adjusted);
    }
  });
}

void CountTokens(const CountTokensArgs& args, ThreadPool*) {
  for (int64_t i = 0; i < args.count; ++i) {
    const int64_t column = int64_t{args.tokens[i]} - args.vocab_begin;
    if (args.tokens[i] < 0 || args.sequences[i] < 0) continue;
    if (column < 0 || column >= args.cols) continue;
    Occurrences& seen =
        args.occurrences[args.sequences[i] * args.cols + column];
    seen = args.prompt ? seen | kInPrompt : seen + 1;
  }
}

}  // namespace ring::cpu
