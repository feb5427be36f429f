#include "worker/adjustment_plan.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/sampling/logit_adjustment.h"
#include "ring/v1/plan.pb.h"
#include "worker/cache/sequence_state.h"
#include "worker/generation_request.h"

namespace ring {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Without sequence and edits.
LogitAdjustment PenaltiesOf(const Sampling& sampling) {
  LogitAdjustment penalties;
  penalties.repetition_penalty = sampling.repetition_penalty;
  penalties.presence_penalty = sampling.presence_penalty;
  penalties.frequency_penalty = sampling.frequency_penalty;
  return penalties;
}

// The biases, then the ids that min_new_tokens keeps out.
int NumEdits(const GenerationRequest& request, bool keep_ends_out) {
  size_t edits = request.sampling.logit_bias.size();
  if (keep_ends_out) {
    edits += request.eos_token_ids.size() + request.stop_token_ids.size();
  }
  return static_cast<int>(edits);
}

bool IsAdjusted(const GenerationRequest& request) {
  return UsesCounts(PenaltiesOf(request.sampling)) ||
         NumEdits(request, request.min_new_tokens > 0) > 0;
}

void AddEdit(int32_t id, float bias, v1::AdjustmentStart* start) {
  start->add_edit_ids(id);
  start->add_edit_biases(bias);
}

}  // namespace

absl::Status CheckAdjustments(const GenerationRequest& request) {
  const int edits = NumEdits(request, request.min_new_tokens > 0);
  if (edits <= kMaxLogitEdits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(request.sampling.logit_bias.size(),
                   " biases and the ids that end the completion are ", edits,
                   ", at most ", kMaxLogitEdits, " fit"));
}

void StartAdjustments(const SequenceState& sequence, v1::GroupPlan* plan) {
  const GenerationRequest& request = sequence.request;
  if (!IsAdjusted(request)) return;
  v1::AdjustmentStart* const start = plan->add_adjustment_starts();
  start->set_sequence(sequence.slot);
  start->set_counts(UsesCounts(PenaltiesOf(request.sampling)));
  for (const LogitBias& bias : request.sampling.logit_bias) {
    AddEdit(bias.id, bias.bias, start);
  }
  if (request.min_new_tokens == 0) return;
  for (const int32_t id : request.eos_token_ids) AddEdit(id, -kInfinity, start);
  for (const int32_t id : request.stop_token_ids) {
    AddEdit(id, -kInfinity, start);
  }
}

void CopyAdjustments(const SequenceState& from, const SequenceState& to,
                     v1::GroupPlan* plan) {
  if (!IsAdjusted(from.request)) return;
  v1::CacheCopy* const copy = plan->add_adjustment_copies();
  copy->set_from(from.slot);
  copy->set_to(to.slot);
}

void CountSegment(const SequenceState& sequence, v1::Segment* segment) {
  const GenerationRequest& request = sequence.request;
  if (!UsesCounts(PenaltiesOf(request.sampling))) return;
  segment->set_counted_prompt(static_cast<int32_t>(request.prompt.size()));
}

void AdjustSample(const SequenceState& sequence, v1::Sample* sample) {
  const GenerationRequest& request = sequence.request;
  const LogitAdjustment penalties = PenaltiesOf(request.sampling);
  const int64_t index =
      static_cast<int64_t>(request.generated.size()) + sequence.num_sampled;
  const int edits = NumEdits(request, index < request.min_new_tokens);
  if (!UsesCounts(penalties) && edits == 0) return;
  v1::Adjustment* const adjustment = sample->mutable_adjustment();
  adjustment->set_repetition_penalty(penalties.repetition_penalty);
  adjustment->set_presence_penalty(penalties.presence_penalty);
  adjustment->set_frequency_penalty(penalties.frequency_penalty);
  adjustment->set_num_edits(edits);
}

}  // namespace ring
