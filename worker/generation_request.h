// What the leader is asked to generate and what it says about it. Plain
// values: no protobuf, no gRPC.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"

namespace ring {

// Added to the logit of one id.
struct LogitBias {
  int32_t id = 0;
  float bias = 0;
};

// How the next token is drawn from the logits. Values are in range: the
// coordinator checks them (coordinator/request_limits).
struct Sampling {
  float temperature = 0;  // 0: greedy, the rest is then not used
  int32_t top_k = 0;      // keep the k most likely ids; 0: all
  float top_p = 1;        // keep the smallest set with this mass; 1: all
  float min_p = 0;        // keep p >= min_p * max p; 0: all
  uint64_t seed = 0;      // key of the counter-based generator
  // Before all that; kernels/sampling/logit_adjustment.h has the formulas.
  float repetition_penalty = 1;  // of ids in prompt or completion; 1: none
  float presence_penalty = 0;    // of ids in the completion
  float frequency_penalty = 0;   // the same, times their number
  std::vector<LogitBias> logit_bias = {};  // no id twice
};

// Completions of one prompt in one request.
inline constexpr int kMaxCompletions = 16;

// Of completion `index` of a request: its random numbers are those of a request
// for one completion with this seed.
constexpr uint64_t SeedOfCompletion(uint64_t seed, int index) {
  // 2^64 / golden ratio, odd: no two indices share a seed.
  return seed + uint64_t{0x9E3779B97F4A7C15} * static_cast<uint64_t>(index);
}

// One prompt to complete.
struct GenerationRequest {
  uint64_t id = 0;              // unique in the life of this process
  std::vector<int32_t> prompt;  // not empty
  // Tokens of the completion that exist already (a request that moved here
  // from another group). The completion continues after them: their indices
  // are [0, generated.size()), and they count against max_new_tokens.
  std::vector<int32_t> generated;
  Sampling sampling;
  // Completions to draw, each with the seed of its index; [1, kMaxCompletions].
  // More than 1 only without `generated`.
  int num_completions = 1;
  int max_new_tokens = 0;  // >= 1, `generated` included
  // As many tokens come, `generated` included, before an id of the lists below
  // can be drawn.
  int min_new_tokens = 0;
  // Ids that end a completion; the id itself is part of the completion. An id
  // in both lists counts as end of sequence.
  std::vector<int32_t> eos_token_ids;   // FinishReason::kEos
  std::vector<int32_t> stop_token_ids;  // FinishReason::kStopToken
  // Ids >= num_token_ids are padding of the embedding: never sampled.
  int num_token_ids = 0;
  bool logprobs = false;  // report the log probability of each token
  int top_logprobs = 0;   // and of so many likeliest ids, [0, 20]
  // The same of the prompt's tokens after the first, before the first token.
  std::optional<int> prompt_logprobs;
  // The request is dropped (DEADLINE_EXCEEDED) when this has passed.
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

// Why a completion ended. Stop strings are text and so the coordinator's.
enum class FinishReason : uint8_t {
  kNone,         // not ended
  kEos,          // an id of eos_token_ids
  kStopToken,    // an id of stop_token_ids
  kLength,       // max_new_tokens
  kContextFull,  // the context, or a sequence's share of the cache, is full
};

// One id in a row's distribution.
struct IdLogprob {
  int32_t id = 0;
  float logprob = 0;  // natural log, before temperature, filters, adjustments
};

// A token of the prompt, given those before it.
struct PromptLogprob {
  float logprob = 0;
  std::vector<IdLogprob> top;  // the likeliest ids there, in descending order
};

// News about one completion. Events of a completion come in order; the last one
// has `finish` set, and no event follows it. An `error` is that of the whole
// request: no event follows for any of its completions.
struct TokenEvent {
  uint64_t id = 0;
  int completion = 0;           // [0, num_completions)
  int64_t start_index = 0;      // index in the completion of tokens[0]
  std::vector<int32_t> tokens;  // may be empty in a last event
  std::vector<float> logprobs;  // natural log; as long as tokens, or empty
  // The likeliest ids of each token's row, in descending order. As long as
  // tokens, or empty.
  std::vector<std::vector<IdLogprob>> top_logprobs;
  // Of completion 0, in events without tokens before all others: the prompt's
  // next tokens, the first event beginning with token 1.
  std::vector<PromptLogprob> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  absl::Status error;  // not OK: the request ended without a completion
  // Set in the event that has the first new token.
  int64_t queue_us = 0;    // from Submit until the first row was planned
  int64_t prefill_us = 0;  // from there until the first token
};

// What the group can still take. Sums over its data-parallel groups.
struct LoadReport {
  int64_t free_pages = 0;   // KV pages of 64 tokens
  int64_t free_slots = 0;   // state slots
  int64_t free_tokens = 0;  // token budget that admission has left
  int queued = 0;           // accepted, no slot yet
  int running = 0;          // has a slot
};

}  // namespace ring
