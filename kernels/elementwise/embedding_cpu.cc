#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/embedding.h"
#include "kernels/elementwise/row_math.h"

namespace ring::cpu {
namespace {

// Rows per hand-out: a row is a few KB of copying.
constexpr int64_t kRowGrain = 16;

}  // namespace

void Embedding(const EmbeddingArgs& args, ThreadPool* pool) {
  const WeightMatrix& table = args.table;
  const int64_t cols = table.cols;
  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t id = args.tokens[row];
      if (id < 0 && args.token_slots[row] >= 0) {
        id = args.last_tokens[args.token_slots[row]];
      }
      const int64_t local = id - args.vocab_begin;
      float* const out = args.out + row * cols;
      if (id >= 0 && local >= 0 && local < table.rows) {
        LoadRow(table.data, table.dtype, local * table.row_stride, cols, out);
      } else {
        std::memset(out, 0, cols * sizeof(float));
      }
    }
  });
}

void GatherRows(const GatherRowsArgs& args, ThreadPool* pool) {
  const int64_t row_bytes =
      args.cols * static_cast<int64_t>(SizeOf(args.dtype));
  const char* const x = static_cast<const char*>(args.x);
  char* const out = static_cast<char*>(args.out);
  pool->ParallelFor(args.count, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (args.index[i] >= 0) {
        std::memcpy(out + i * row_bytes, x + args.index[i] * row_bytes,
                    row_bytes);
      } else {
        std::memset(out + i * row_bytes, 0, row_bytes);
      }
    }
  });
}

void LocalExperts(const LocalExpertsArgs& args, ThreadPool*) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const bool valid = args.row_valid == nullptr || args.row_valid[row] != 0;
    for (int64_t i = row * args.top_k; i < (row + 1) * args.top_k; ++i) {
      args.local[i] = valid ? args.to_local[args.experts[i]] : -1;
    }
  }
}

}  // namespace ring::cpu
