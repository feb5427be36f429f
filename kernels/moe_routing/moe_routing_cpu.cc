#include <limits>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/embedding.h"
#include "kernels/elementwise/row_math.h"
#include "kernels/linear/linear.h"
#include "kernels/moe_routing/moe_routing.h"

namespace ring::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kRowGrain = 4;

// Scratch of one row.
struct RowScores {
  explicit RowScores(const MoeRoutingArgs& args)
      : score(args.num_experts),
        choice(args.num_experts),
        taken(args.num_experts),
        group(args.n_group),
        group_open(args.n_group) {}

  std::vector<float> score;      // [num_experts] p
  std::vector<float> choice;     // [num_experts] c
  std::vector<char> taken;       // [num_experts]
  std::vector<float> group;      // [n_group] sum of the two largest c
  std::vector<char> group_open;  // [n_group]
};

// Index of the first largest value that is not yet taken; -1 if none is left.
// A NaN is never larger than anything, so it is taken last.
template <typename IsFree>
int FirstLargest(const std::vector<float>& values, IsFree is_free) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(values.size()); ++i) {
    if (!is_free(i)) continue;
    if (best < 0 || values[i] > values[best] ||
        (values[best] != values[best] && values[i] == values[i])) {
      best = i;
    }
  }
  return best;
}

float SumOfTwoLargest(const float* c, int n) {
  float first = kLowest;
  float second = kLowest;
  for (int i = 0; i < n; ++i) {
    if (c[i] > first) {
      second = first;
      first = c[i];
    } else if (c[i] > second) {
      second = c[i];
    }
  }
  return n == 1 ? first : first + second;
}

void OpenGroups(const MoeRoutingArgs& args, RowScores* row) {
  const int width = args.num_experts / args.n_group;
  for (int g = 0; g < args.n_group; ++g) {
    row->group[g] = SumOfTwoLargest(row->choice.data() + g * width, width);
    row->group_open[g] = 0;
  }
  for (int i = 0; i < args.topk_group; ++i) {
    const int g = FirstLargest(
        row->group, [&](int candidate) { return !row->group_open[candidate]; });
    row->group_open[g] = 1;
  }
}

void RouteRow(const MoeRoutingArgs& args, const float* logits, int32_t* experts,
              float* weights, RowScores* row) {
  for (int e = 0; e < args.num_experts; ++e) {
    row->score[e] = Sigmoid(logits[e]);
    row->choice[e] =
        row->score[e] + (args.expert_bias ? args.expert_bias[e] : 0.0f);
  }
  OpenGroups(args, row);

  const int width = args.num_experts / args.n_group;
  row->taken.assign(args.num_experts, 0);
  float sum = 0;
  for (int slot = 0; slot < args.top_k; ++slot) {
    const int e = FirstLargest(row->choice, [&](int candidate) {
      return row->group_open[candidate / width] && !row->taken[candidate];
    });
    row->taken[e] = 1;
    experts[slot] = e;
    weights[slot] = row->score[e];
    sum += row->score[e];
  }
  const float scale =
      args.routed_scaling_factor / (args.norm_topk_prob ? sum + 1e-20f : 1.0f);
  for (int slot = 0; slot < args.top_k; ++slot) weights[slot] *= scale;
}

// normed = rms(x) * norm_weight
void NormRows(const MoeRoutingArgs& args, ThreadPool* pool) {
  RING_CHECK(args.x_dtype == DType::kFloat32);
  const int64_t hidden = args.router.cols;
  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const x = static_cast<const float*>(args.x) + row * hidden;
      float* const normed = args.normed + row * hidden;
      const float scale = InverseRms(SumOfSquares(x, hidden), hidden, args.eps);
      for (int64_t i = 0; i < hidden; ++i) {
        normed[i] = x[i] * scale * args.norm_weight[i];
      }
    }
  });
}

}  // namespace

void MoeRouting(const MoeRoutingArgs& args, ThreadPool* pool) {
  RING_CHECK_EQ(args.num_experts % args.n_group, 0);
  RING_CHECK_LE(args.topk_group, args.n_group);
  RING_CHECK_LE(args.top_k, args.num_experts / args.n_group * args.topk_group);
  RING_CHECK_EQ(args.router.rows, args.num_experts);
  LinearArgs linear;
  linear.x = args.x;
  linear.x_dtype = args.x_dtype;
  if (args.norm_weight != nullptr) {
    NormRows(args, pool);
    linear.x = args.normed;
  }
  linear.rows = args.rows;
  linear.decode_rows = args.decode_rows;
  linear.weight = args.router;
  linear.y = args.logits;
  linear.y_dtype = DType::kFloat32;
  Linear(linear, pool);

  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    RowScores scores(args);
    for (int64_t row = begin; row < end; ++row) {
      RouteRow(args, args.logits + row * args.num_experts,
               args.experts + row * args.top_k, args.weights + row * args.top_k,
               &scores);
    }
  });
  if (args.local == nullptr) return;
  LocalExpertsArgs local;
  local.experts = args.experts;
  local.rows = args.rows;
  local.top_k = args.top_k;
  local.row_valid = args.row_valid;
  local.to_local = args.to_local;
  local.local = args.local;
  LocalExperts(local, pool);
}

}  // namespace ring::cpu
