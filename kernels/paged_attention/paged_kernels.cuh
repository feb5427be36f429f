// What the files of the paged attention's kernels know of each other.
#pragma once

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/paged_attention/paged_attention.h"

namespace ring::cuda {

// Both are for bf16 pages and bf16 results, on tensor cores. Decode segments
// write their own keys and values; those of prompt segments are in the pages
// before.
void PagedDecodeSegments(const PagedAttentionArgs& args, Stream* stream);
void PagedPromptSegments(const PagedAttentionArgs& args, Stream* stream);

__device__ inline int64_t QkvWidth(const PagedAttentionArgs& args) {
  return int64_t{args.num_heads + 2 * args.num_kv_heads} * args.head_dim;
}

// Where the KV head's entries of a page start, in elements.
__device__ inline int64_t PageOffset(const PagedAttentionArgs& args,
                                     int64_t page, int kv_head) {
  return (page * args.num_kv_heads + kv_head) * kPageTokens * args.head_dim;
}

// The pages of a segment, in order of position.
__device__ inline const int32_t* PagesOf(const PagedAttentionArgs& args,
                                         int segment) {
  const StepSegments& s = args.segments;
  return s.page_table + s.page_row[segment] * s.page_stride;
}

// 2^x; 0 for -inf.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Queries are scaled by this, so that their scores are exponents of 2.
__device__ inline float QueryScale(int head_dim) {
  constexpr float kLog2E = 1.4426950408889634f;
  return kLog2E / sqrtf(static_cast<float>(head_dim));
}

}  // namespace ring::cuda
