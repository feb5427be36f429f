// A block owns one row: it adds the parts in order, keeps each thread's sum of
// squares, and scales the row in a second pass over what then lies in L1.
// Bound: memory, parts and residual read once, residual and normed written.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/norm/residual_norm.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 512;

__device__ float PartScale(const ResidualNormArgs& args, int part,
                           int64_t row) {
  if (args.sum_of_squares == nullptr) return 1.0f;
  const int first = part / args.parts_per_group * args.parts_per_group;
  float sum = 0;
  for (int p = first; p < first + args.parts_per_group; ++p) {
    sum += args.sum_of_squares[p * args.rows + row];
  }
  return InverseRms(sum, args.group_width, args.group_eps);
}

template <typename Part, typename Out>
__global__ void AddAndNorm(ResidualNormArgs args) {
  __shared__ float shared[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  float* const residual = args.residual + row * args.cols;
  const Part* const parts = static_cast<const Part*>(args.parts);
  for (int part = 0; part < args.num_parts; ++part) {
    const float scale = PartScale(args, part, row);
    const Part* const from = parts + part * args.part_stride + row * args.cols;
    // A thread meets the same columns in every pass: no barrier is needed.
    for (int64_t i = threadIdx.x; i < args.cols; i += kThreads) {
      residual[i] += scale * Widen(from[i]);
    }
  }
  if (args.norm_weight == nullptr) return;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < args.cols; i += kThreads) {
    squares += residual[i] * residual[i];
  }
  const float scale =
      InverseRms(BlockSum(squares, shared), args.cols, args.eps);
  Out* const normed = static_cast<Out*>(args.normed) + row * args.cols;
  for (int64_t i = threadIdx.x; i < args.cols; i += kThreads) {
    normed[i] = Narrow<Out>(residual[i] * scale * args.norm_weight[i]);
  }
}

}  // namespace

void ResidualNorm(const ResidualNormArgs& args, Stream* stream) {
  if (args.sum_of_squares != nullptr) {
    RING_CHECK_GT(args.group_width, 0);
    RING_CHECK_EQ(args.num_parts % args.parts_per_group, 0);
  }
  if (args.rows == 0) return;
  WithFloatType(args.parts_dtype, [&](auto part) {
    WithFloatType(args.normed_dtype, [&](auto out) {
      AddAndNorm<decltype(part), decltype(out)>
          <<<Blocks(args.rows, 1), kThreads, 0, stream->get()>>>(args);
    });
  });
  CheckLaunch("AddAndNorm");
}

}  // namespace ring::cuda
