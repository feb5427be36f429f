// A block owns one row: it adds the parts in order, keeps each thread's sum of
// squares, and scales the row in a second pass over what then lies in L1.
// Bound: memory, parts and residual read once, residual and normed written.
#include "kernels/cuda_stream.cuh"
#include "kernels/norm/residual_norm.cuh"

namespace ring::cuda {
namespace {

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
  __shared__ float shared[kNormWarps];
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t row = blockIdx.x;
  const Part* const parts =
      static_cast<const Part*>(args.parts) + row * args.cols;
  AddAndNormRow<Out>(
      args, row,
      [&](int part, int i) {
        return Widen(parts[part * args.part_stride + i]);
      },
      [&](int part) { return PartScale(args, part, row); }, shared);
}

}  // namespace

void ResidualNorm(const ResidualNormArgs& args, Stream* stream) {
  if (args.sum_of_squares != nullptr) {
    RING_CHECK_GT(args.group_width, 0);
    RING_CHECK_EQ(args.num_parts % args.parts_per_group, 0);
  }
  if (args.rows == 0) return;
  RING_CHECK_LE(args.cols, int64_t{1} << 30);
  WithFloatType(args.parts_dtype, [&](auto part) {
    WithFloatType(args.normed_dtype, [&](auto out) {
      LaunchDependent(AddAndNorm<decltype(part), decltype(out)>,
                      Blocks(args.rows, 1), kNormThreads, 0, stream, args);
    });
  });
}

}  // namespace ring::cuda
