#include <algorithm>
#include <cstring>

#include "kernels/base/thread_pool.h"
#include "kernels/token_copies/token_copies.h"

namespace ring::cpu {
namespace {

// Rows per hand-out: a row is a few KB of copying.
constexpr int64_t kRowGrain = 16;

}  // namespace

void PlanCopies(const PlanCopiesArgs& args, ThreadPool*) {
  std::fill_n(args.counts, args.num_ranks, 0);
  for (int64_t row = 0; row < args.rows; ++row) {
    int32_t* const copy_of = args.copy_of + row * args.num_ranks;
    std::fill_n(copy_of, args.num_ranks, -1);
    for (int j = 0; j < args.top_k; ++j) {
      const int rank = args.rank_of[args.experts[row * args.top_k + j]];
      if (copy_of[rank] < 0) {
        copy_of[rank] = static_cast<int32_t>(args.counts[rank]++);
      }
    }
  }
}

void PackCopies(const PackCopiesArgs& args, ThreadPool* pool) {
  const int top_k = args.top_k;
  const auto pack_row = [&](int64_t row) {
    const int32_t* const experts = args.experts + row * top_k;
    int64_t first_copy = 0;
    for (int rank = 0; rank < args.num_ranks; ++rank) {
      const int32_t index = args.copy_of[row * args.num_ranks + rank];
      const int64_t copy = first_copy + index;
      first_copy += args.counts[rank];
      if (index < 0) continue;
      std::memcpy(static_cast<char*>(args.packed_x) + copy * args.row_bytes,
                  static_cast<const char*>(args.x) + row * args.row_bytes,
                  args.row_bytes);
      for (int j = 0; j < top_k; ++j) {
        args.packed_experts[copy * top_k + j] =
            args.rank_of[experts[j]] == rank ? args.local_index[experts[j]]
                                             : -1;
        args.packed_weights[copy * top_k + j] = args.weights[row * top_k + j];
      }
    }
  };
  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pack_row(row);
  });
}

void AddCopies(const AddCopiesArgs& args, ThreadPool* pool) {
  const auto add_row = [&](int64_t row) {
    float* const out = args.out + row * args.cols;
    int64_t first_copy = 0;
    for (int rank = 0; rank < args.num_ranks; ++rank) {
      const int32_t index = args.copy_of[row * args.num_ranks + rank];
      const float* const part = args.parts + (first_copy + index) * args.cols;
      first_copy += args.counts[rank];
      if (index < 0) continue;
      for (int64_t c = 0; c < args.cols; ++c) out[c] += part[c];
    }
  };
  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) add_row(row);
  });
}

}  // namespace ring::cpu
