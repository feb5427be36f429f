#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/grouped_ffn/prompt_workspace.h"
#include "kernels/grouped_ffn/swiglu.h"
#include "kernels/linear/dot_product.h"
#include "kernels/linear/scratch.h"
#include "kernels/norm/residual_norm.h"

namespace ring {
namespace {

// Inter columns of one expert that one work item computes, if few rows chose
// it. Many rows are packed once for all columns.
constexpr int64_t kInterStrip = 4 * kDotRowAlign;
constexpr int64_t kFewRows = 16;
// At most this many hidden columns make up a work item of the down product.
constexpr int64_t kMaxHiddenStrip = 4 * kDotRowAlign;
// Rows of one expert per call of the kernels; bounds the strips' scratch.
constexpr int64_t kRowChunk = 256;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t AlignedBytes(int64_t bytes) { return CeilDiv(bytes, 64) * 64; }

// Parts of GroupedFfnArgs::workspace. A pair is a (row, slot) whose expert is
// here; pairs are numbered expert by expert, rows ascending within one.
struct Workspace {
  int64_t bytes = 0;
  int32_t* packed_h = nullptr;    // [packed rows of all experts, packed inter]
  char* h = nullptr;              // [pairs, inter] of x_dtype
  int32_t* pair_of = nullptr;     // [rows, top_k]: the pair, or -1
  int32_t* row_of = nullptr;      // [pairs]
  int32_t* first_pair = nullptr;  // [experts + 1]
  int64_t* first_packed = nullptr;  // [experts]: the first row in packed_h
  int32_t* touched = nullptr;       // [experts]: experts that have pairs

  Workspace(void* base, int64_t rows, int64_t top_k, int64_t inter,
            DType x_dtype, int64_t experts) {
    char* const begin = static_cast<char*>(base);
    const auto take = [&](auto** part, int64_t count, int64_t element_bytes) {
      *part = reinterpret_cast<std::remove_reference_t<decltype(*part)>>(
          begin == nullptr ? nullptr : begin + bytes);
      bytes += AlignedBytes(count * element_bytes);
    };
    const int64_t pairs = rows * top_k;
    const int64_t packed_rows =
        pairs + std::min(pairs, experts) * (MaxPackedRows(1) - 1);
    take(&packed_h, packed_rows * MaxPackedWords(inter), 4);
    take(&h, pairs * inter, static_cast<int64_t>(SizeOf(x_dtype)));
    take(&pair_of, pairs, 4);
    take(&row_of, pairs, 4);
    take(&first_pair, experts + 1, 4);
    take(&first_packed, experts, 8);
    take(&touched, experts, 4);
  }
};

class GroupedFfnRun {
 public:
  GroupedFfnRun(const GroupedFfnArgs& args, ThreadPool* pool)
      : args_(args),
        pool_(pool),
        num_experts_(static_cast<int64_t>(args.experts.size())),
        inter_(args.experts[0].gate.rows),
        in_(MakeDotProduct(args.x_dtype, args.experts[0].gate)),
        out_(MakeDotProduct(args.x_dtype, args.experts[0].down)),
        work_(args.workspace, args.rows, args.top_k, inter_, args.x_dtype,
              num_experts_) {}

  void Run() {
    GroupPairs();
    GateAndUp();
    PackInner();
    DownAndCombine();
  }

 private:
  // Counting sort of the pairs by expert.
  void GroupPairs() {
    const int64_t slots = args_.rows * args_.top_k;
    int32_t* const first = work_.first_pair;
    std::fill(first, first + num_experts_ + 1, 0);
    for (int64_t p = 0; p < slots; ++p) {
      const int32_t expert = args_.local_experts[p];
      RING_DCHECK(expert < num_experts_) << "expert " << expert;
      if (expert >= 0) ++first[expert + 1];
    }
    for (int64_t e = 0; e < num_experts_; ++e) {
      if (first[e + 1] > 0) {
        work_.touched[num_touched_++] = static_cast<int32_t>(e);
      }
      first[e + 1] += first[e];
    }
    num_pairs_ = first[num_experts_];
    for (int64_t p = 0; p < slots; ++p) {
      const int32_t expert = args_.local_experts[p];
      work_.pair_of[p] = -1;
      if (expert < 0) continue;
      const int32_t pair = first[expert]++;
      work_.pair_of[p] = pair;
      work_.row_of[pair] = static_cast<int32_t>(p / args_.top_k);
    }
    // Every entry has moved to its expert's end: move it back.
    for (int64_t e = num_experts_; e > 0; --e) first[e] = first[e - 1];
    first[0] = 0;
  }

  // h[pair] = silu(x gate^T) * (x up^T), an item being a strip of one expert.
  void GateAndUp() {
    const int64_t strip =
        num_pairs_ > kFewRows * num_touched_ ? inter_ : kInterStrip;
    const int64_t strips = CeilDiv(inter_, strip);
    const int64_t items = num_touched_ * strips;
    const int64_t macs = 2 * num_pairs_ * inter_ * args_.hidden;
    pool_->ParallelFor(items, DotGrain(items, macs, 1),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t item = begin; item < end; ++item) {
                           const int64_t n = item % strips * strip;
                           GateAndUpStrip(work_.touched[item / strips], n,
                                          std::min(strip, inter_ - n));
                         }
                       });
  }

  void GateAndUpStrip(int32_t expert, int64_t n, int64_t count) {
    thread_local Scratch sums;
    thread_local Scratch packed;
    const GatedMlpWeights& weights = args_.experts[expert];
    const int64_t end = work_.first_pair[expert + 1];
    for (int64_t pair = work_.first_pair[expert]; pair < end;
         pair += kRowChunk) {
      const int64_t rows = std::min(kRowChunk, end - pair);
      int32_t* const x =
          packed.Get<int32_t>(MaxPackedRows(rows) * in_.layout.packed_words);
      PackRows(in_, {args_.x, args_.x_dtype, work_.row_of + pair}, rows, x,
               nullptr);
      float* const gate = sums.Get<float>(2 * rows * count);
      float* const up = gate + rows * count;
      MultiplyRows(in_, x, rows, weights.gate, n, n + count, gate, count);
      MultiplyRows(in_, x, rows, weights.up, n, n + count, up, count);
      SwiGluRows(gate, up, rows, count, count, args_.x_dtype,
                 work_.h + (pair * inter_ + n) *
                               static_cast<int64_t>(SizeOf(args_.x_dtype)),
                 inter_);
    }
  }

  // packed_h of all experts, every chunk of rows a block.
  void PackInner() {
    int64_t next = 0;
    for (int64_t t = 0; t < num_touched_; ++t) {
      const int32_t expert = work_.touched[t];
      work_.first_packed[expert] = next;
      next += PackedRows(out_, NumPairs(expert));
    }
    const int64_t row_bytes =
        inter_ * static_cast<int64_t>(SizeOf(args_.x_dtype));
    pool_->ParallelFor(
        num_touched_, DotGrain(num_touched_, num_pairs_ * inter_, 1),
        [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t) {
            const int32_t expert = work_.touched[t];
            for (int64_t row = 0; row < NumPairs(expert); row += kRowChunk) {
              const int64_t pair = work_.first_pair[expert] + row;
              PackRows(out_, {work_.h + pair * row_bytes, args_.x_dtype},
                       std::min(kRowChunk, NumPairs(expert) - row),
                       PackedInner(expert, row), nullptr);
            }
          }
        });
  }

  int64_t NumPairs(int32_t expert) const {
    return work_.first_pair[expert + 1] - work_.first_pair[expert];
  }

  // The block of an expert's rows from `row` on, a multiple of kRowChunk.
  int32_t* PackedInner(int32_t expert, int64_t row) const {
    return work_.packed_h +
           (work_.first_packed[expert] + row) * out_.layout.packed_words;
  }

  // An item is a strip of hidden columns over all touched experts, so that it
  // alone writes its part of y, in slot order.
  void DownAndCombine() {
    const int64_t wanted = CeilDiv(args_.hidden, pool_->threads() * 4);
    const int64_t strip =
        std::min(kMaxHiddenStrip, CeilDiv(wanted, kDotRowAlign) * kDotRowAlign);
    const int64_t items = CeilDiv(args_.hidden, strip);
    const int64_t macs = num_pairs_ * inter_ * args_.hidden;
    pool_->ParallelFor(
        items, DotGrain(items, macs, 1), [&](int64_t begin, int64_t end) {
          for (int64_t item = begin; item < end; ++item) {
            const int64_t n = item * strip;
            DownAndCombineStrip(n, std::min(strip, args_.hidden - n));
          }
        });
  }

  void DownAndCombineStrip(int64_t n, int64_t count) {
    thread_local Scratch scratch;
    float* z = scratch.Get<float>(num_pairs_ * count);  // [pairs, count]
    for (int64_t t = 0; t < num_touched_; ++t) {
      const int32_t expert = work_.touched[t];
      const int64_t pairs = NumPairs(expert);
      for (int64_t row = 0; row < pairs; row += kRowChunk) {
        MultiplyRows(out_, PackedInner(expert, row),
                     std::min(kRowChunk, pairs - row),
                     args_.experts[expert].down, n, n + count,
                     z + (work_.first_pair[expert] + row) * count, count);
      }
    }
    for (int64_t row = 0; row < args_.rows; ++row) {
      float* y = args_.y + row * args_.hidden + n;
      std::fill(y, y + count, 0.0f);
      for (int64_t p = row * args_.top_k; p < (row + 1) * args_.top_k; ++p) {
        if (work_.pair_of[p] < 0) continue;
        const float weight = args_.weights[p];
        const float* part = z + work_.pair_of[p] * count;
        for (int64_t j = 0; j < count; ++j) y[j] += weight * part[j];
      }
    }
  }

  const GroupedFfnArgs& args_;
  ThreadPool* const pool_;
  const int64_t num_experts_;
  const int64_t inter_;
  const DotProduct in_;   // of gate and up
  const DotProduct out_;  // of down
  Workspace work_;
  int64_t num_pairs_ = 0;
  int64_t num_touched_ = 0;
};

}  // namespace

int64_t GroupedFfnWorkspaceBytes(int64_t rows, int top_k, int64_t hidden,
                                 int64_t inter, DType x_dtype,
                                 int64_t num_experts) {
  return std::max(
      Workspace(nullptr, rows, top_k, inter, x_dtype, num_experts).bytes,
      cuda::PromptWorkspaceBytes(rows, top_k, hidden, inter, num_experts));
}

void cpu::GroupedFfn(const GroupedFfnArgs& args, ThreadPool* pool) {
  if (args.rows == 0) return;
  if (args.experts.empty()) {
    std::fill(args.y, args.y + args.rows * args.hidden, 0.0f);
  } else {
    RING_CHECK_EQ(args.experts[0].gate.cols, args.hidden);
    GroupedFfnRun(args, pool).Run();
  }
  if (args.shared != nullptr) DenseFfn(SharedFfn(args), pool);
  if (args.norm != nullptr) ResidualNorm(NormOf(args), pool);
}

ResidualNormArgs NormOf(const GroupedFfnArgs& args) {
  ResidualNormArgs norm = *args.norm;
  norm.parts = args.y;
  norm.parts_dtype = DType::kFloat32;
  norm.num_parts = 1;
  norm.part_stride = 0;
  norm.rows = args.rows;
  norm.cols = args.hidden;
  norm.sum_of_squares = nullptr;
  return norm;
}

}  // namespace ring
