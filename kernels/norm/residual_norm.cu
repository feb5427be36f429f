// A block owns one row and adds the parts in order. AddAndNormQuads, for rows
// of up to 4,096 columns: a thread owns two times four columns and keeps them
// in registers. AddAndNorm, for others: each thread keeps its sum of squares,
// and the row is scaled in a second pass over what then lies in L1. Bound:
// memory, parts and residual read once, residual and normed written.
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

template <typename Part, typename Out>
__global__ void __launch_bounds__(kQuadThreads, 2)
    AddAndNormQuads(const __grid_constant__ ResidualNormArgs args) {
  __shared__ float shared[kQuadThreads / kWarp];
  cudaTriggerProgrammaticLaunchCompletion();
  const int64_t row = blockIdx.x;
  float weight[kQuads][4];
  LoadQuads(args.norm_weight, args.cols, /*aligned=*/true, weight);
  cudaGridDependencySynchronize();
  float x[kQuads][4];
  LoadQuads(args.residual + row * args.cols, args.cols, /*aligned=*/true, x);
  const Part* part = static_cast<const Part*>(args.parts) + row * args.cols;
#pragma unroll 2
  for (int p = 0; p < args.num_parts; ++p, part += args.part_stride) {
    const float factor = PartScale(args, p, row);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (QuadColumn(q) >= args.cols) continue;
      float y[4];
      LoadQuad(part + QuadColumn(q), /*aligned=*/true, y);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[q][e] += factor * y[e];
    }
  }
  NormQuads<Out>(args, row, /*aligned=*/true, x, weight, shared);
}

bool TakesQuads(const ResidualNormArgs& args) {
  return FitQuads(args.cols) && args.part_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(args.parts) % 16 == 0 &&
         AllowQuadLoads(args);
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
      using Part = decltype(part);
      using Out = decltype(out);
      const unsigned blocks = Blocks(args.rows, 1);
      if (TakesQuads(args)) {
        LaunchDependent(AddAndNormQuads<Part, Out>, blocks, kQuadThreads, 0,
                        stream, args);
      } else {
        LaunchDependent(AddAndNorm<Part, Out>, blocks, kNormThreads, 0, stream,
                        args);
      }
    });
  });
}

}  // namespace ring::cuda
