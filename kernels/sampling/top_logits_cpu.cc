#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/thread_pool.h"
#include "kernels/sampling/top_logits.h"

namespace ring::cpu {
namespace {

// The largest logits of one row so far. They come in ascending order of ids, so
// an equal one ranks behind.
class Ranking {
 public:
  // Writes to `top`, which has kMaxTopLogits entries.
  Ranking(int32_t most, TopLogit* top) : most_(most), top_(top) {
    std::fill(top, top + kMaxTopLogits, TopLogit());
  }

  void Add(int32_t id, float logit) {
    if (!(logit > least_)) return;  // true for NaN
    int at = size_ < most_ ? size_++ : most_ - 1;
    for (; at > 0 && logit > top_[at - 1].value; --at) top_[at] = top_[at - 1];
    top_[at] = {id, logit};
    if (size_ == most_) least_ = top_[most_ - 1].value;
  }

 private:
  const int32_t most_;
  TopLogit* const top_;
  int32_t size_ = 0;
  float least_ = -std::numeric_limits<float>::infinity();
};

}  // namespace

void TopLogits(const TopLogitsArgs& args, ThreadPool* pool) {
  const LogitsSlice& slice = args.slice;
  pool->ParallelFor(slice.rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int32_t most = args.params[row].num_top;
      Ranking ranking(most, args.top + row * kMaxTopLogits);
      if (most == 0) continue;
      const float* const logits = slice.logits + row * slice.cols;
      for (int64_t i = 0; i < OpenColumns(slice); ++i) {
        ranking.Add(slice.vocab_begin + static_cast<int32_t>(i), logits[i]);
      }
    }
  });
}

void MergeTopLogits(const MergeTopLogitsArgs& args, ThreadPool*) {
  for (int64_t row = 0; row < args.rows; ++row) {
    TopLogit* const top = args.top + row * kMaxTopLogits;
    const int32_t most = args.params[row].num_top;
    const RowStats& stats = args.stats[row];
    Ranking ranking(most, top);
    if (most == 0 || IsBad(stats)) continue;
    for (int rank = 0; rank < args.ranks; ++rank) {
      const TopLogit* const part =
          args.parts + (rank * args.rows + row) * kMaxTopLogits;
      for (int i = 0; i < most && part[i].id >= 0; ++i) {
        ranking.Add(part[i].id, part[i].value);
      }
    }
    for (int i = 0; i < most && top[i].id >= 0; ++i) {
      top[i].value = static_cast<float>(double{top[i].value} - stats.max -
                                        std::log(stats.sum_exp));
    }
  }
}

}  // namespace ring::cpu
