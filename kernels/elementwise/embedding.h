// Row lookups: the vocabulary-parallel embedding, and picking rows.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

class ThreadPool;

// out[r] = table[id_r - vocab_begin] if this rank holds the row, else 0; the
// sum over the ranks' outputs is the embedding.
// id_r = tokens[r] if >= 0, else last_tokens[token_slots[r]]: the token that
// was sampled for that slot and may never have left the device. Padding rows
// have tokens[r] = -1 and token_slots[r] = -1 and give zeros.
struct EmbeddingArgs {
  const int32_t* tokens = nullptr;       // [rows]
  const int32_t* token_slots = nullptr;  // [rows]
  const int32_t* last_tokens = nullptr;  // [slots]
  int64_t rows = 0;
  WeightMatrix table;  // [local vocabulary, hidden] bf16 or fp32
  int32_t vocab_begin = 0;
  float* out = nullptr;  // [rows, hidden] fp32
};

// out[i] = x[index[i]]; index -1 gives zeros.
struct GatherRowsArgs {
  const void* x = nullptr;  // [*, cols]
  DType dtype = DType::kFloat32;
  int64_t cols = 0;
  const int32_t* index = nullptr;  // [count]
  int64_t count = 0;
  void* out = nullptr;  // [count, cols]
};

// local[r][j] = to_local[experts[r][j]]: turns global expert ids into this
// rank's indices, -1 where another rank owns the expert or row r is padding.
struct LocalExpertsArgs {
  const int32_t* experts = nullptr;  // [rows, top_k] global ids
  int64_t rows = 0;
  int top_k = 1;
  const int32_t* row_valid = nullptr;  // [rows] 0: padding. Null: all valid
  const int32_t* to_local = nullptr;   // [num_experts]
  int32_t* local = nullptr;            // [rows, top_k]
};

namespace cpu {
void Embedding(const EmbeddingArgs& args, ThreadPool* pool);
void GatherRows(const GatherRowsArgs& args, ThreadPool* pool);
void LocalExperts(const LocalExpertsArgs& args, ThreadPool* pool);
}  // namespace cpu
namespace cuda {
class Stream;
void Embedding(const EmbeddingArgs& args, Stream* stream);
void GatherRows(const GatherRowsArgs& args, Stream* stream);
void LocalExperts(const LocalExpertsArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
