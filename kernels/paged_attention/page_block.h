// The two products of a block of queries with one page of one KV head.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/paged_attention/paged_attention.h"

namespace ring::cpu {

struct PageBlock {
  const float* q = nullptr;  // [queries, D], scaled by D^-0.5
  int queries = 0;
  int head_dim = 0;         // D
  const void* k = nullptr;  // [kPageTokens, D] of the page, bf16 or fp32
  const void* v = nullptr;  // likewise
  DType kv_dtype = DType::kBFloat16;
  int tokens = 0;  // of the page, in use: 1 to kPageTokens
  // The keys that are needed next, null if none: fetched ahead, since a page
  // is too short for the processor to notice the stream.
  const void* next_k = nullptr;
  float* weights = nullptr;  // [queries, kPageTokens]
  float* o = nullptr;        // [queries, D]
};

// weights[i][j] = q_i . k_j. Entries from `tokens` on may be written and mean
// nothing. The bits of an entry depend on q_i and k_j alone.
void PageScores(const PageBlock& block);

// o_i += sum_{j < tokens} weights[i][j] v_j, in ascending order of j.
void AddPageValues(const PageBlock& block);

// The running softmax of one query over its pages.
struct SoftmaxState {
  float max;  // of the scores so far, -inf before the first
  float sum;  // of exp(score - max) so far
};

// Turns the first `count` >= 1 scores into weights exp(score - max), the
// others into zeros, and rescales `state` and o (of head_dim values) to the
// new maximum.
void UpdateSoftmax(float* scores, int count, SoftmaxState* state, float* o,
                   int head_dim);

}  // namespace ring::cpu
