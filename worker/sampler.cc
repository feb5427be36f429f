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
                                kThresholdBins * sizeof(uint64_t)});
  std::unique_ptr<Sampler> sampler(new Sampler(options, backend, tp));
  RING_ASSIGN_OR_RETURN(sampler->part_, backend->Allocate(part_bytes));
  RING_ASSIGN_OR_RETURN(sampler->gathered_,
                        backend->Allocate(part_bytes * tp->size()));
  RING_ASSIGN_OR_RETURN(sampler->stats_,
                        backend->Allocate(rows * sizeof(RowStats)));
  RING_ASSIGN_OR_RETURN(sampler->thresholds_,
                        backend->Allocate(rows * sizeof(Threshold)));
  RING_ASSIGN_OR_RETURN(sampler->tokens_,
                        backend->Allocate(rows * sizeof(SampledToken)));
  return sampler;
}

Sampler::Mode Sampler::ModeOf(absl::Span<const SamplingRow> rows) {
  Mode mode;
  for (const SamplingRow& row : rows) {
    mode.random = mode.random || !IsGreedy(row);
    mode.top_k = mode.top_k || UsesTopK(row);
    mode.top_p = mode.top_p || UsesTopP(row);
  }
  return mode;
}

void Sampler::Draw(const DrawArgs& args) {
  const int64_t n = args.num_rows;
  RING_CHECK_LE(n, options_.max_rows);
  if (n == 0) return;
  const LogitsSlice slice = {args.logits, n, options_.local_vocab,
                             options_.vocab_begin, args.num_token_ids};
  auto* const stats = static_cast<RowStats*>(stats_->data());
  auto* const thresholds = static_cast<Threshold*>(thresholds_->data());

  auto* const own_stats = static_cast<RowStats*>(part_->data());
  backend_->LogitStats({slice, own_stats});
  tp_->AllGather(own_stats, gathered_->data(), n * sizeof(RowStats));
  backend_->MergeStats({static_cast<const RowStats*>(gathered_->data()),
                        tp_->size(), n, stats, thresholds});

  if (args.mode.top_k) Narrow(slice, args.rows, ThresholdKind::kTopK);
  if (args.mode.top_p) Narrow(slice, args.rows, ThresholdKind::kTopP);
  if (args.mode.random) {
    auto* const draws = static_cast<TokenDraw*>(part_->data());
    backend_->DrawTokens({slice, args.rows, stats, thresholds, draws});
    tp_->AllGather(draws, gathered_->data(), n * sizeof(TokenDraw));
  }

  backend_->FinishTokens(
      {args.rows, stats, static_cast<const TokenDraw*>(gathered_->data()),
       tp_->size(), n, static_cast<SampledToken*>(tokens_->data()), args.ids});
}

void Sampler::Read(absl::Span<SampledToken> tokens) {
  backend_->CopyToHost(
      tokens.data(), tokens_->data(),
      static_cast<int64_t>(tokens.size() * sizeof(SampledToken)));
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
