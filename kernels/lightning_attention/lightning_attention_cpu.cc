// Work is split over (segment, head): the state of a head is read and written
// by one thread. Decode segments take the recurrence row by row, which streams
// the state once a row; prompt segments take chunks of 64 rows as matrix
// products in cache. A last pass over rows does the group norm and the gate,
// which need all heads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/row_math.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/simd/small_gemm.h"
#include "kernels/simd/vec.h"

namespace ring {

// The heads' outputs in fp32, [rows, H * D]; for the GPU also the states at
// which the blocks of cut segments start, [2 * blocks, H, D, D].
int64_t LightningWorkspaceFloats(int64_t max_rows, int num_heads,
                                 int head_dim) {
  const int64_t block_rows = LightningBlockRows(num_heads);
  const int64_t blocks =
      max_rows > block_rows ? (max_rows + block_rows - 1) / block_rows : 0;
  return (max_rows + 2 * blocks * head_dim) * num_heads * head_dim;
}

namespace cpu {
namespace {

// Rows of a chunk. Chunks end where the position in the sequence is a multiple
// of this, so a prompt that is cut there gives the same bits as a whole one.
constexpr int kChunkRows = 64;

// One step of the recurrence on one head:
//   state_out = decay * state_in + outer(k, v);  o = q state_out
struct RecurrentStep {
  const float* state_in = nullptr;  // [D, D], null: zeros
  float* state_out = nullptr;       // [D, D], may be state_in
  const float* q = nullptr;         // [D], scaled by D^-0.5
  const float* k = nullptr;         // [D]
  const float* v = nullptr;         // [D]
  float decay = 0;                  // exp(-s)
  int head_dim = 0;
  float* o = nullptr;  // [D]
};

// The state goes by in memory order, four rows at a time so that o, which
// stays in L1, is loaded and stored once for four rows.
struct RecurrentStepKernel {
  template <int kLanes, int kRows>
  RING_INLINE static void UpdateRows(const RecurrentStep& step, int row) {
    using Vec = simd::FloatVec<kLanes>;
    const int n = step.head_dim;
    const float* const in =
        step.state_in == nullptr ? nullptr : step.state_in + int64_t{row} * n;
    float* const out = step.state_out + int64_t{row} * n;
    int j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      Vec o, v;
      simd::Load<kLanes>(step.o + j, o);
      simd::Load<kLanes>(step.v + j, v);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        Vec s = v * step.k[row + r];
        if (in != nullptr) {
          Vec old;
          simd::Load<kLanes>(in + r * n + j, old);
          s += old * step.decay;
        }
        simd::Store<kLanes>(s, out + r * n + j);
        o += s * step.q[row + r];
      }
      simd::Store<kLanes>(o, step.o + j);
    }
    for (; j < n; ++j) {
      for (int r = 0; r < kRows; ++r) {
        const float old = in == nullptr ? 0.0f : in[r * n + j];
        const float s = step.k[row + r] * step.v[j] + old * step.decay;
        out[r * n + j] = s;
        step.o[j] += s * step.q[row + r];
      }
    }
  }

  template <int kLanes>
  RING_INLINE static void Run(const RecurrentStep* step) {
    std::fill(step->o, step->o + step->head_dim, 0.0f);
    int row = 0;
    for (; row + 4 <= step->head_dim; row += 4) {
      UpdateRows<kLanes, 4>(*step, row);
    }
    for (; row < step->head_dim; ++row) UpdateRows<kLanes, 1>(*step, row);
  }
};

// One head of one segment.
class HeadTask {
 public:
  HeadTask(const LightningAttentionArgs& args, int segment, int head)
      : args_(args),
        head_(head),
        dim_(args.head_dim),
        first_row_(args.segments.row_begin[segment]),
        row_count_(args.segments.row_count[segment]),
        position_(args.segments.position[segment]),
        state_in_(State(args.segments.state_in[segment])),
        state_out_(State(args.segments.state_out[segment])) {}

  void RunRecurrent() const;
  void RunChunked() const;

 private:
  float* State(int32_t slot) const {
    if (slot < 0) return nullptr;
    return args_.states +
           (int64_t{slot} * args_.num_heads + head_) * dim_ * dim_;
  }

  // This head's place in row `row` of the workspace. [D]
  float* Output(int64_t row) const {
    return args_.workspace + (row * args_.num_heads + head_) * dim_;
  }

  // q, k and v of one row, ready for the recurrence; q scaled by D^-0.5.
  void LoadRowHead(int64_t row, float* q, float* k, float* v) const;

  const LightningAttentionArgs& args_;
  const int head_;
  const int dim_;
  const int64_t first_row_;
  const int row_count_;
  const int64_t position_;
  const float* const state_in_;
  float* const state_out_;
};

void HeadTask::LoadRowHead(int64_t row, float* q, float* k, float* v) const {
  const int64_t width = int64_t{args_.num_heads} * dim_;
  const int64_t offset = row * 3 * width + int64_t{head_} * dim_;
  LoadRow(args_.qkv, args_.qkv_dtype, offset, dim_, q);
  LoadRow(args_.qkv, args_.qkv_dtype, offset + width, dim_, k);
  LoadRow(args_.qkv, args_.qkv_dtype, offset + 2 * width, dim_, v);
  if (args_.silu) {
    for (float* x : {q, k, v}) {
      for (int i = 0; i < dim_; ++i) x[i] *= Sigmoid(x[i]);
    }
  }
  const int half = args_.rope.half;
  const float* const cos = args_.rope.cos + row * half;
  const float* const sin = args_.rope.sin + row * half;
  NormAndRotateHead(q, dim_, args_.q_norm, args_.eps, cos, sin, half);
  NormAndRotateHead(k, dim_, args_.k_norm, args_.eps, cos, sin, half);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim_));
  for (int i = 0; i < dim_; ++i) q[i] *= scale;
}

void HeadTask::RunRecurrent() const {
  std::vector<float> qkv(3 * dim_);
  RecurrentStep step;
  step.state_in = state_in_;
  step.state_out = state_out_;
  step.decay = std::exp(-args_.decay_rates[head_]);
  step.head_dim = dim_;
  for (int64_t row = first_row_; row < first_row_ + row_count_; ++row) {
    float* const q = qkv.data();
    LoadRowHead(row, q, q + dim_, q + 2 * dim_);
    step.q = q;
    step.k = q + dim_;
    step.v = q + 2 * dim_;
    step.o = Output(row);
    simd::Dispatch<RecurrentStepKernel>(
        static_cast<const RecurrentStep*>(&step));
    step.state_in = state_out_;
  }
}

// With C rows, local index i, j and incoming state S:
//   A[i, j] = (q_i . k_j) exp(-s (i - j)) for j <= i, else 0
//   o_i     = sum_j A[i, j] v_j + exp(-s (i + 1)) q_i S
//   S       = exp(-s C) S + sum_j exp(-s (C - 1 - j)) outer(k_j, v_j)
// Every exponent is a difference of row numbers within the chunk, so nothing
// overflows whatever the rate.
void HeadTask::RunChunked() const {
  const int64_t ld = kChunkRows;  // row stride of k_t and scores
  std::vector<float> scratch((3 * kChunkRows + 1) * dim_ +
                             kChunkRows * kChunkRows + kChunkRows + 1);
  float* const q = scratch.data();                // [C, D]
  float* const k_t = q + kChunkRows * dim_;       // [D, C]
  float* const v = k_t + kChunkRows * dim_;       // [C, D]
  float* const k_row = v + kChunkRows * dim_;     // [D]
  float* const scores = k_row + dim_;             // [C, C]
  float* const power = scores + ld * kChunkRows;  // [C + 1] exp(-s n)
  for (int n = 0; n <= kChunkRows; ++n) {
    power[n] =
        static_cast<float>(std::exp(-double{args_.decay_rates[head_]} * n));
  }

  const int64_t out_stride = int64_t{args_.num_heads} * dim_;
  const float* state = state_in_;
  for (int done = 0; done < row_count_;) {
    const int64_t begin = first_row_ + done;
    const int count = static_cast<int>(std::min<int64_t>(
        row_count_ - done, kChunkRows - (position_ + done) % kChunkRows));
    for (int i = 0; i < count; ++i) {
      LoadRowHead(begin + i, q + i * dim_, k_row, v + i * dim_);
      for (int d = 0; d < dim_; ++d) k_t[d * ld + i] = k_row[d];
    }

    simd::SmallGemm({q, dim_, k_t, ld, scores, ld, count, count, dim_, false});
    for (int i = 0; i < count; ++i) {
      for (int j = 0; j <= i; ++j) scores[i * ld + j] *= power[i - j];
      std::fill(scores + i * ld + i + 1, scores + i * ld + count, 0.0f);
    }
    simd::SmallGemm({scores, ld, v, dim_, Output(begin), out_stride, count,
                     dim_, count, false});
    if (state != nullptr) {
      for (int i = 0; i < count; ++i) {
        for (int d = 0; d < dim_; ++d) q[i * dim_ + d] *= power[i + 1];
      }
      simd::SmallGemm({q, dim_, state, dim_, Output(begin), out_stride, count,
                       dim_, dim_, true});
    }

    for (int64_t i = 0; i < int64_t{dim_} * dim_; ++i) {
      state_out_[i] = state == nullptr ? 0.0f : state[i] * power[count];
    }
    for (int d = 0; d < dim_; ++d) {
      for (int j = 0; j < count; ++j) k_t[d * ld + j] *= power[count - 1 - j];
    }
    simd::SmallGemm(
        {k_t, ld, v, dim_, state_out_, dim_, dim_, dim_, count, true});
    state = state_out_;
    done += count;
  }
}

// out[i] = o[i] * scale * weight[i] * sigmoid(gate[i])
struct GateKernel {
  template <int kLanes>
  RING_INLINE static void Run(const float* o, float scale, const float* weight,
                              const float* gate, int64_t n, float* out) {
    using Vec = simd::FloatVec<kLanes>;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Vec x, w, e;
      simd::Load<kLanes>(o + i, x);
      simd::Load<kLanes>(weight + i, w);
      simd::Load<kLanes>(gate + i, e);
      e = -e;
      simd::Exp<kLanes>(e);
      simd::Store<kLanes>(x * scale * w / (e + 1.0f), out + i);
    }
    for (; i < n; ++i) out[i] = o[i] * scale * weight[i] * Sigmoid(gate[i]);
  }
};

// Group norm and gate of one row, from the workspace to `out`. `buffer` has
// room for 2 * H * D values.
void FinishRow(const LightningAttentionArgs& args, int64_t row, float* buffer) {
  const int64_t width = int64_t{args.num_heads} * args.head_dim;
  const float* const o = args.workspace + row * width;
  float* const gate = buffer;
  float* const result = buffer + width;
  LoadRow(args.gate, args.qkv_dtype, row * width, width, gate);

  const int groups = std::max(args.groups, 1);
  const int64_t group_width = width / groups;
  for (int group = 0; group < groups; ++group) {
    const int64_t begin = group * group_width;
    const float sum = SumOfSquares(o + begin, group_width);
    float scale = 1.0f;
    if (args.groups == 0) {
      args.sum_of_squares[row] = sum;
    } else {
      scale = InverseRms(sum, group_width, args.eps);
    }
    simd::Dispatch<GateKernel>(o + begin, scale, args.g_norm + begin,
                               static_cast<const float*>(gate + begin),
                               group_width, result + begin);
  }
  StoreRow(result, width, args.out_dtype, row * width, args.out);
}

std::vector<int64_t> RowsOfSegments(const StepSegments& segments) {
  std::vector<int64_t> rows;
  for (int s = 0; s < segments.num_segments; ++s) {
    for (int i = 0; i < segments.row_count[s]; ++i) {
      rows.push_back(int64_t{segments.row_begin[s]} + i);
    }
  }
  return rows;
}

}  // namespace

void LightningAttention(const LightningAttentionArgs& args, ThreadPool* pool) {
  const StepSegments& segments = args.segments;
  const int64_t width = int64_t{args.num_heads} * args.head_dim;
  if (args.groups > 0) RING_CHECK_EQ(width % args.groups, 0);
  if (args.groups == 0) RING_CHECK(args.sum_of_squares != nullptr);

  // Prompt segments are the long ones and stand last: they start first.
  const int64_t tasks = int64_t{segments.num_segments} * args.num_heads;
  pool->ParallelFor(tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int segment =
          segments.num_segments - 1 - static_cast<int>(task / args.num_heads);
      if (segments.row_count[segment] == 0) continue;
      const HeadTask head(args, segment,
                          static_cast<int>(task % args.num_heads));
      if (segment < segments.num_decode_segments) {
        head.RunRecurrent();
      } else {
        head.RunChunked();
      }
    }
  });

  constexpr int64_t kRowGrain = 2;
  const std::vector<int64_t> rows = RowsOfSegments(segments);
  pool->ParallelFor(rows.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(2 * width);
    for (int64_t i = begin; i < end; ++i) {
      FinishRow(args, rows[i], buffer.data());
    }
  });
}

}  // namespace cpu
}  // namespace ring
