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
  RING_ASSIGN_OR_RETURN(sampler->params_,
                        backend->Allocate(rows * sizeof(SamplingRow)));
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

void Sampler::Sample(const float* logits, absl::Span<const SamplingRow> rows,
                     int32_t num_token_ids, SampledToken* tokens,
                     int32_t* ids) {
  const int64_t n = static_cast<int64_t>(rows.size());
  RING_CHECK_LE(n, options_.max_rows);
  if (n == 0) return;
  const LogitsSlice slice = {logits, n, options_.local_vocab,
                             options_.vocab_begin, num_token_ids};
  auto* const params = static_cast<SamplingRow*>(params_->data());
  auto* const stats = static_cast<RowStats*>(stats_->data());
  auto* const thresholds = static_cast<Threshold*>(thresholds_->data());
  backend_->CopyToDevice(params, rows.data(), n * sizeof(SamplingRow));

  auto* const own_stats = static_cast<RowStats*>(part_->data());
  backend_->LogitStats({slice, own_stats});
  tp_->AllGather(own_stats, gathered_->data(), n * sizeof(RowStats));
  backend_->MergeStats({static_cast<const RowStats*>(gathered_->data()),
                        tp_->size(), n, stats, thresholds});

  if (std::any_of(rows.begin(), rows.end(), UsesTopK)) {
    Narrow(slice, ThresholdKind::kTopK);
  }
  if (std::any_of(rows.begin(), rows.end(), UsesTopP)) {
    Narrow(slice, ThresholdKind::kTopP);
  }
  if (!std::all_of(rows.begin(), rows.end(), IsGreedy)) {
    auto* const draws = static_cast<TokenDraw*>(part_->data());
    backend_->DrawTokens({slice, params, stats, thresholds, draws});
    tp_->AllGather(draws, gathered_->data(), n * sizeof(TokenDraw));
  }

  auto* const drawn = static_cast<SampledToken*>(tokens_->data());
  backend_->FinishTokens({params, stats,
                          static_cast<const TokenDraw*>(gathered_->data()),
                          tp_->size(), n, drawn, ids});
  backend_->CopyToHost(tokens, drawn, n * sizeof(SampledToken));
  backend_->Synchronize();
}

void Sampler::Narrow(const LogitsSlice& slice, ThresholdKind kind) {
  auto* const bins = static_cast<uint64_t*>(part_->data());
  const auto* const params = static_cast<const SamplingRow*>(params_->data());
  auto* const thresholds = static_cast<Threshold*>(thresholds_->data());
  for (int round = 0; round < kThresholdRounds; ++round) {
    const int shift = 24 - 8 * round;
    backend_->ThresholdHistogram({slice, params,
                                  static_cast<const RowStats*>(stats_->data()),
                                  thresholds, kind, shift, bins});
    tp_->AllGather(bins, gathered_->data(),
                   slice.rows * kThresholdBins * sizeof(uint64_t));
    backend_->NarrowThreshold(
        {params, static_cast<const uint64_t*>(gathered_->data()), tp_->size(),
         slice.rows, kind, shift, thresholds});
  }
}

}  // namespace ring
