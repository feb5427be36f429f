#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/grouped_ffn/swiglu.h"
#include "kernels/linear/dot_product.h"
#include "kernels/linear/scratch.h"

namespace ring {
namespace {

// Rows that pass through the block at a time, which bounds the memory.
constexpr int64_t kRowBlock = 256;
// Outputs per pass: what an item computes before it writes.
constexpr int64_t kStrip = 4 * kDotRowAlign;

// One block of rows on its way through the feed-forward.
struct RowBlock {
  const void* x;
  int64_t rows;
  float* y;
};

class DenseFfnRun {
 public:
  DenseFfnRun(const DenseFfnArgs& args, ThreadPool* pool)
      : args_(args),
        pool_(pool),
        hidden_(args.weights.gate.cols),
        inter_(args.weights.gate.rows),
        in_(MakeDotProduct(args.x_dtype, args.weights.gate)),
        out_(MakeDotProduct(args.x_dtype, args.weights.down)) {
    RING_CHECK_EQ(args.weights.up.rows, inter_);
    RING_CHECK_EQ(args.weights.up.cols, hidden_);
    RING_CHECK_EQ(args.weights.down.rows, hidden_);
    RING_CHECK_EQ(args.weights.down.cols, inter_);
  }

  void Run(const RowBlock& block) {
    thread_local Scratch scratch;
    const int64_t words =
        std::max(in_.layout.packed_words, out_.layout.packed_words);
    packed_ = scratch.Get<int32_t>(MaxPackedRows(block.rows) * words);
    PackRows(in_, {block.x, args_.x_dtype}, block.rows, packed_, pool_);
    GateAndUp(block.rows);
    PackRows(out_, {args_.workspace, args_.x_dtype}, block.rows, packed_,
             pool_);
    Down(block);
  }

 private:
  // workspace [rows, inter] = silu(x gate^T) * (x up^T)
  void GateAndUp(int64_t rows) {
    const int64_t grain =
        DotGrain(inter_, 2 * rows * inter_ * hidden_, kDotRowAlign);
    pool_->ParallelFor(inter_, grain, [&](int64_t begin, int64_t end) {
      thread_local Scratch scratch;
      float* gate = scratch.Get<float>(2 * rows * kStrip);
      float* up = gate + rows * kStrip;
      for (int64_t n = begin; n < end; n += kStrip) {
        const int64_t count = std::min(kStrip, end - n);
        MultiplyRows(in_, packed_, rows, args_.weights.gate, n, n + count, gate,
                     kStrip);
        MultiplyRows(in_, packed_, rows, args_.weights.up, n, n + count, up,
                     kStrip);
        SwiGluRows(gate, up, rows, count, kStrip, args_.x_dtype,
                   static_cast<char*>(args_.workspace) +
                       n * static_cast<int64_t>(SizeOf(args_.x_dtype)),
                   inter_);
      }
    });
  }

  // y (+)= workspace down^T
  void Down(const RowBlock& block) {
    const int64_t grain =
        DotGrain(hidden_, block.rows * inter_ * hidden_, kDotRowAlign);
    pool_->ParallelFor(hidden_, grain, [&](int64_t begin, int64_t end) {
      if (!args_.accumulate) {
        MultiplyRows(out_, packed_, block.rows, args_.weights.down, begin, end,
                     block.y + begin, hidden_);
        return;
      }
      thread_local Scratch scratch;
      float* sums = scratch.Get<float>(block.rows * kStrip);
      for (int64_t n = begin; n < end; n += kStrip) {
        const int64_t count = std::min(kStrip, end - n);
        MultiplyRows(out_, packed_, block.rows, args_.weights.down, n,
                     n + count, sums, kStrip);
        for (int64_t i = 0; i < block.rows; ++i) {
          float* y = block.y + i * hidden_ + n;
          for (int64_t j = 0; j < count; ++j) y[j] += sums[i * kStrip + j];
        }
      }
    });
  }

  const DenseFfnArgs& args_;
  ThreadPool* const pool_;
  const int64_t hidden_;
  const int64_t inter_;
  const DotProduct in_;        // of gate and up
  const DotProduct out_;       // of down
  int32_t* packed_ = nullptr;  // the rows of the product that is computed
};

}  // namespace

int64_t DenseFfnWorkspaceBytes(int64_t rows, int64_t inter, DType x_dtype) {
  return std::min(rows, kDenseFfnRows) * inter *
         static_cast<int64_t>(SizeOf(x_dtype));
}

void cpu::DenseFfn(const DenseFfnArgs& args, ThreadPool* pool) {
  if (args.rows == 0 || args.weights.gate.cols == 0) return;
  DenseFfnRun run(args, pool);
  const int64_t hidden = args.weights.gate.cols;
  for (int64_t row = 0; row < args.rows; row += kRowBlock) {
    RowBlock block;
    block.x = static_cast<const char*>(args.x) +
              row * hidden * static_cast<int64_t>(SizeOf(args.x_dtype));
    block.rows = std::min(kRowBlock, args.rows - row);
    block.y = args.y + row * hidden;
    run.Run(block);
  }
}

}  // namespace ring
