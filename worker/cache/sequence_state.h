// One running or waiting sequence, as the leader sees it.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "worker/generation_request.h"

namespace ring {

// Plain record, owned by the scheduler and confined to the engine thread.
//
// Positions count from 0 over prompt and completion. `planned` rows lie in
// plans that were sent; a token whose row is planned may not be known yet, as
// plans run ahead of results.
struct SequenceState {
  // With the seed of this completion.
  GenerationRequest request;
  // Its index among the completions of the request. The others begin with what
  // completion 0 has computed of the prompt.
  int completion = 0;
  // The others, admitted together with completion 0: what they wait for is its
  // prompt. Empty from then on.
  std::vector<SequenceState*> followers;

  // Prompt and the part of the completion that came with the request: the rows
  // whose tokens are known from the start.
  std::vector<int32_t> known;
  // New tokens, in order, as far as results are in.
  int64_t num_committed = 0;
  int64_t num_sampled = 0;  // samples planned; >= num_committed
  int64_t num_scored = 0;   // tokens of the prompt, results of which are in
  // Samples after which the sequence ends with `limit_reason`.
  int64_t max_samples = 0;
  FinishReason limit_reason = FinishReason::kLength;

  // Where it lives. -1: not admitted.
  int group = -1;
  int slot = -1;
  // In order of position. Pages that the prompt fills are those of all
  // completions.
  std::vector<int32_t> pages;
  int reserved_pages = 0;  // promised, not taken yet

  int64_t planned_rows = 0;  // positions [0, planned_rows) are planned
  int plans_in_flight = 0;   // sent plans that hold rows of this sequence
  bool ended = false;        // no more rows; freed when nothing is in flight

  std::chrono::steady_clock::time_point submitted;
  std::chrono::steady_clock::time_point first_planned;

  int64_t num_known() const { return static_cast<int64_t>(known.size()); }
  bool prefilled() const { return planned_rows >= num_known(); }
};

}  // namespace ring
