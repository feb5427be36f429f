// NormRows: a block owns a row. Then the router's product (linear.cu). Then
// ChooseExperts: a warp owns a row and keeps its scores in shared memory, 2
// floats an expert and one a group; every choice is a search of the warp for
// the first largest value. Bound: latency, a few microseconds.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/linear.h"
#include "kernels/moe_routing/moe_routing.h"

namespace ring::cuda {
namespace {

constexpr int kNormThreads = 256;

__global__ void NormRows(MoeRoutingArgs args) {
  __shared__ float shared[kNormThreads / kWarp];
  const int64_t hidden = args.router.cols;
  const int64_t row = blockIdx.x;
  const float* const x = static_cast<const float*>(args.x) + row * hidden;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < hidden; i += kNormThreads) {
    squares += x[i] * x[i];
  }
  const float scale = InverseRms(BlockSum(squares, shared), hidden, args.eps);
  for (int64_t i = threadIdx.x; i < hidden; i += kNormThreads) {
    args.normed[row * hidden + i] = x[i] * scale * args.norm_weight[i];
  }
}

// Whether candidate (a, i) goes before (b, j): larger first, then the lower
// index, NaN last. Index -1 is no candidate.
__device__ bool GoesBefore(float a, int i, float b, int j) {
  if (i < 0) return false;
  if (j < 0) return true;
  const bool a_nan = a != a;
  const bool b_nan = b != b;
  if (a_nan != b_nan) return b_nan;
  if (!a_nan && a != b) return a > b;
  return i < j;
}

// Index of the first largest of values[0..n) for which is_free(i), in all
// lanes; -1 if there is none.
template <typename IsFree>
__device__ int FirstLargest(const float* values, int n, IsFree is_free) {
  float best = 0;
  int index = -1;
  for (int i = threadIdx.x % kWarp; i < n; i += kWarp) {
    if (is_free(i) && GoesBefore(values[i], i, best, index)) {
      best = values[i];
      index = i;
    }
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, offset);
    const int other_index = __shfl_xor_sync(kAllLanes, index, offset);
    if (GoesBefore(other, other_index, best, index)) {
      best = other;
      index = other_index;
    }
  }
  return index;
}

// The sum of the two largest of c[0..n), by one lane.
__device__ float SumOfTwoLargest(const float* c, int n) {
  float first = -INFINITY;
  float second = -INFINITY;
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

__global__ void ChooseExperts(MoeRoutingArgs args) {
  extern __shared__ float shared[];
  float* const choice = shared;                    // [num_experts] c
  float* const score = choice + args.num_experts;  // [num_experts] p
  float* const group = score + args.num_experts;   // [n_group]
  int* const open = reinterpret_cast<int*>(group + args.n_group);  // [n_group]
  const int lane = threadIdx.x;
  const int64_t row = blockIdx.x;
  const float* const logits = args.logits + row * args.num_experts;
  for (int e = lane; e < args.num_experts; e += kWarp) {
    score[e] = Sigmoid(logits[e]);
    choice[e] = score[e] + (args.expert_bias ? args.expert_bias[e] : 0.0f);
  }
  __syncwarp();
  const int width = args.num_experts / args.n_group;
  for (int g = lane; g < args.n_group; g += kWarp) {
    group[g] = SumOfTwoLargest(choice + g * width, width);
    open[g] = 0;
  }
  __syncwarp();
  for (int i = 0; i < args.topk_group; ++i) {
    const int g =
        FirstLargest(group, args.n_group, [&](int c) { return !open[c]; });
    __syncwarp();
    if (lane == 0) open[g] = 1;
    __syncwarp();
  }
  // A taken expert's score is moved to its slot, so its sign marks it: scores
  // are never negative.
  float sum = 0;
  for (int slot = 0; slot < args.top_k; ++slot) {
    const int e = FirstLargest(choice, args.num_experts, [&](int c) {
      return open[c / width] && !(score[c] < 0);
    });
    const float p = score[e];
    sum += p;
    __syncwarp();
    if (lane == 0) {
      args.experts[row * args.top_k + slot] = e;
      args.weights[row * args.top_k + slot] = p;
      score[e] = -1;
    }
    __syncwarp();
  }
  const float scale =
      args.routed_scaling_factor / (args.norm_topk_prob ? sum + 1e-20f : 1.0f);
  for (int slot = lane; slot < args.top_k; slot += kWarp) {
    args.weights[row * args.top_k + slot] *= scale;
  }
}

}  // namespace

void MoeRouting(const MoeRoutingArgs& args, Stream* stream) {
  RING_CHECK_EQ(args.num_experts % args.n_group, 0);
  RING_CHECK_LE(args.topk_group, args.n_group);
  RING_CHECK_LE(args.top_k, args.num_experts / args.n_group * args.topk_group);
  RING_CHECK_EQ(args.router.rows, args.num_experts);
  if (args.rows == 0) return;
  LinearArgs linear;
  linear.x = args.x;
  linear.x_dtype = args.x_dtype;
  if (args.norm_weight != nullptr) {
    RING_CHECK(args.x_dtype == DType::kFloat32);
    NormRows<<<Blocks(args.rows, 1), kNormThreads, 0, stream->get()>>>(args);
    CheckLaunch("NormRows");
    linear.x = args.normed;
  }
  linear.rows = args.rows;
  linear.decode_rows = args.decode_rows;
  linear.weight = args.router;
  linear.y = args.logits;
  Linear(linear, stream);
  const size_t shared =
      (2 * args.num_experts + 2 * args.n_group) * sizeof(float);
  ChooseExperts<<<Blocks(args.rows, 1), kWarp, shared, stream->get()>>>(args);
  CheckLaunch("ChooseExperts");
}

}  // namespace ring::cuda
