// Softmax attention over a paged KV cache, everything between the QKV
// projection and the output projection.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/step_rows.h"

namespace ring {

class ThreadPool;

// Tokens of one KV page.
inline constexpr int kPageTokens = 64;

// For every row t of every segment:
//   q, k = rope(rms(q, q_norm)), rope(rms(k, k_norm))     per head
//   write k, v to the segment's pages at the row's position
//   o_a = softmax(q_a . k_c / sqrt(D), causal) v_c        c = a / (H / K)
// Rows of one segment see each other causally. num_heads is a multiple of
// num_kv_heads.
struct PagedAttentionArgs {
  const void* qkv = nullptr;  // [rows, (H + 2 K) * D]: Q heads | K | V
  DType qkv_dtype = DType::kFloat32;
  int64_t rows = 0;
  int num_heads = 0;     // H, of this rank
  int num_kv_heads = 0;  // K, of this rank
  int head_dim = 0;      // D

  const float* q_norm = nullptr;  // [D], null: no q/k norm
  const float* k_norm = nullptr;  // [D]
  float eps = 0;
  RopeRows rope;

  StepSegments segments;
  // [pages, K, kPageTokens, D] each, this layer's part of the pool.
  void* k_pages = nullptr;
  void* v_pages = nullptr;
  DType kv_dtype = DType::kBFloat16;  // bf16 or fp32

  void* out = nullptr;  // [rows, H * D]; padding rows are left as they are
  DType out_dtype = DType::kFloat32;
};

namespace cpu {
void PagedAttention(const PagedAttentionArgs& args, ThreadPool* pool);
}
namespace cuda {
class Stream;
void PagedAttention(const PagedAttentionArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
