#include "worker/sampler.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {

absl::StatusOr<std::unique_ptr<Sampler>> Sampler::Create(const Options& options,
                                                         Backend* backend,
                                                         Communicator* tp) {
  const int64_t rows = options.max_rows;
  const int64_t part_bytes =
      rows * std::max<int64_t>({sizeof(RowStats), sizeof(TokenDraw),
                                kMaxTopLogits * sizeof(TopLogit),
                                kThresholdBins * sizeof(uint64_t)});
  std::unique_ptr<Sampler> sampler(new Sampler(options, backend, tp));
  RING_ASSIGN_OR_RETURN(sampler->part_, backend->Allocate(part_bytes));
  RING_ASSIGN_OR_RETURN(sampler->gathered_,
                        backend->Allocate(part_bytes * tp->size()));
  RING_ASSIGN_OR_RETURN(sampler->stats_,
                        backend->Allocate(2 * rows * sizeof(RowStats)));
  RING_ASSIGN_OR_RETURN(sampler->thresholds_,
                        backend->Allocate(2 * rows * sizeof(Threshold)));
  RING_ASSIGN_OR_RETURN(sampler->tokens_,
                        backend->Allocate(rows * sizeof(SampledToken)));
  RING_ASSIGN_OR_RETURN(sampler->top_, backend->Allocate(rows * kMaxTopLogits *
                                                         sizeof(TopLogit)));
  RING_ASSIGN_OR_RETURN(
      sampler->adjusted_,
      backend->Allocate(rows * options.local_vocab * sizeof(float)));
  RING_ASSIGN_OR_RETURN(
      sampler->occurrences_,
      backend->Allocate(options.max_sequences * options.local_vocab *
                        sizeof(Occurrences)));
  const int64_t edits = options.max_sequences * kMaxLogitEdits;
  RING_ASSIGN_OR_RETURN(sampler->edits_,
                        backend->Allocate(edits * sizeof(LogitEdit)));
  sampler->host_edits_.resize(edits);
  return sampler;
}

Sampler::Mode Sampler::ModeOf(absl::Span<const SamplingRow> rows) {
  Mode mode;
  for (const SamplingRow& row : rows) {
    mode.random = mode.random || !IsGreedy(row);
    mode.top_k = mode.top_k || UsesTopK(row);
    mode.top_p = mode.top_p || UsesTopP(row);
    mode.report = mode.report || row.num_top > 0;
  }
  return mode;
}

void Sampler::StartSequence(int32_t sequence, bool counts,
                            absl::Span<const LogitEdit> edits) {
  RING_CHECK_LT(sequence, options_.max_sequences);
  RING_CHECK_LE(edits.size(), static_cast<size_t>(kMaxLogitEdits));
  if (counts) {
    const int64_t cols = options_.local_vocab;
    backend_->Zero(static_cast<Occurrences*>(occurrences_->data()) +
                       int64_t{sequence} * cols,
                   cols * static_cast<int64_t>(sizeof(Occurrences)));
  }
  const int64_t first = int64_t{sequence} * kMaxLogitEdits;
  std::copy(edits.begin(), edits.end(), host_edits_.begin() + first);
  backend_->CopyToDevice(
      static_cast<LogitEdit*>(edits_->data()) + first,
      host_edits_.data() + first,
      static_cast<int64_t>(edits.size() * sizeof(LogitEdit)));
}

void Sampler::CopySequence(int32_t from, int32_t to) {
  RING_CHECK_LT(std::max(from, to), options_.max_sequences);
  const int64_t cols = options_.local_vocab;
  auto* const occurrences = static_cast<Occurrences*>(occurrences_->data());
  backend_->Copy(occurrences + to * cols, occurrences + from * cols,
                 cols * static_cast<int64_t>(sizeof(Occurrences)));
  auto* const edits = static_cast<LogitEdit*>(edits_->data());
  backend_->Copy(edits + to * kMaxLogitEdits, edits + from * kMaxLogitEdits,
                 kMaxLogitEdits * static_cast<int64_t>(sizeof(LogitEdit)));
}

void Sampler::Count(const int32_t* tokens, const int32_t* sequences,
                    int64_t count, bool prompt) {
  if (count == 0) return;
  backend_->CountTokens({tokens, sequences, count, prompt, options_.vocab_begin,
                         options_.local_vocab,
                         static_cast<Occurrences*>(occurrences_->data())});
}

void Sampler::Draw(const DrawArgs& args) {
  const int64_t n = args.num_rows;
  RING_CHECK_LE(n, options_.max_rows);
  if (n == 0) return;
  LogitsSlice slice = {args.logits, n, options_.local_vocab,
                       options_.vocab_begin, args.num_token_ids};
  auto* const stats = static_cast<RowStats*>(stats_->data());
  auto* const thresholds = static_cast<Threshold*>(thresholds_->data());

  auto* const own_stats = static_cast<RowStats*>(part_->data());
  const RowStats* raw_stats = stats;
  int64_t num_stats = n;
  if (args.mode.adjust) {
    // One gather and one merge for the statistics of both.
    raw_stats = stats + n;
    num_stats = 2 * n;
    backend_->LogitStats({slice, own_stats + n});
    auto* const adjusted = static_cast<float*>(adjusted_->data());
    backend_->AdjustLogits(
        {slice, args.adjustments,
         static_cast<const Occurrences*>(occurrences_->data()),
         static_cast<const LogitEdit*>(edits_->data()), adjusted});
    slice.raw = slice.logits;
    slice.logits = adjusted;
  }
  backend_->LogitStats({slice, own_stats});
  tp_->AllGather(own_stats, gathered_->data(), num_stats * sizeof(RowStats));
  backend_->MergeStats({static_cast<const RowStats*>(gathered_->data()),
                        tp_->size(), num_stats, stats, thresholds});

  if (args.mode.report) RankLogits(args, raw_stats);
  if (args.mode.top_k) Narrow(slice, args.rows, ThresholdKind::kTopK);
  if (args.mode.top_p) Narrow(slice, args.rows, ThresholdKind::kTopP);
  if (args.mode.random) {
    auto* const draws = static_cast<TokenDraw*>(part_->data());
    backend_->DrawTokens({slice, args.rows, stats, thresholds, draws});
    tp_->AllGather(draws, gathered_->data(), n * sizeof(TokenDraw));
  }

  backend_->FinishTokens(
      {args.rows, stats, raw_stats,
       static_cast<const TokenDraw*>(gathered_->data()), tp_->size(), n,
       static_cast<SampledToken*>(tokens_->data()), args.ids});
  if (args.mode.adjust) Count(args.ids, args.sequences, n, /*prompt=*/false);
}

void Sampler::Read(absl::Span<SampledToken> tokens) {
  backend_->CopyToHost(
      tokens.data(), tokens_->data(),
      static_cast<int64_t>(tokens.size() * sizeof(SampledToken)));
}

void Sampler::ReadTop(absl::Span<TopLogit> top) {
  backend_->CopyToHost(top.data(), top_->data(),
                       static_cast<int64_t>(top.size() * sizeof(TopLogit)));
}

void Sampler::RankLogits(const DrawArgs& args, const RowStats* raw_stats) {
  const int64_t n = args.num_rows;
  const LogitsSlice raw = {args.logits, n, options_.local_vocab,
                           options_.vocab_begin, args.num_token_ids};
  auto* const part = static_cast<TopLogit*>(part_->data());
  backend_->TopLogits({raw, args.rows, part});
  tp_->AllGather(part, gathered_->data(), n * kMaxTopLogits * sizeof(TopLogit));
  backend_->MergeTopLogits({static_cast<const TopLogit*>(gathered_->data()),
                            tp_->size(), n, args.rows, raw_stats,
                            static_cast<TopLogit*>(top_->data())});
}

void Sampler::Narrow(const LogitsSlice& slice, const SamplingRow* rows,
                     ThresholdKind kind) {
  auto* const bins = static_cast<uint64_t*>(part_->data());
  auto* const thresholds = static_cast<Threshold*>(thresholds_->data());
  for (int round = 0; round < kThresholdRounds; ++round) {
    const int shift = 24 - 8 * round;
    backend_->ThresholdHistogram({slice, rows,
                                  static_cast<const RowStats*>(stats_->data()),
                                  thresholds, kind, shift, bins});
    tp_->AllGather(bins, gathered_->data(),
                   slice.rows * kThresholdBins * sizeof(uint64_t));
    backend_->NarrowThreshold(
        {rows, static_cast<const uint64_t*>(gathered_->data()), tp_->size(),
         slice.rows, kind, shift, thresholds});
  }
}

}  // namespace ring
