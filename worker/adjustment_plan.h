// What a plan says about requests whose logits are adjusted.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace ring {

namespace v1 {
class GroupPlan;
class Sample;
class Segment;
}  // namespace v1
struct GenerationRequest;
struct SequenceState;

// INVALID_ARGUMENT if the request has more biases and ids that end it than a
// sequence has room for, with the numbers.
absl::Status CheckAdjustments(const GenerationRequest& request);

// Adds what the ranks keep of the sequence, if it asks for anything. Once, with
// its first segment.
void StartAdjustments(const SequenceState& sequence, v1::GroupPlan* plan);

// Gives `to`, another completion of the same request, what the ranks keep of
// `from` when its known tokens are counted.
void CopyAdjustments(const SequenceState& from, const SequenceState& to,
                     v1::GroupPlan* plan);

// Marks a segment of known tokens to be counted, if the sequence has penalties.
void CountSegment(const SequenceState& sequence, v1::Segment* segment);

// Adds what holds for the sequence's next sample, number num_sampled. Absent
// when nothing does: a plan of such samples runs no more ops than it needs.
void AdjustSample(const SequenceState& sequence, v1::Sample* sample);

}  // namespace ring
