// A block owns one row and adds the parts in order. AddAndNormQuads, for rows
// of up to 4,096 columns: a thread owns two times 4 and keeps them in
// registers. AddAndNorm, for others: each thread keeps its sum of squares, and
// the row is scaled in a second pass over what then lies in L1. Bound: latency
// for few rows; for many memory, parts and residual read once, residual and
// normed written.
#include "kernels/attention_rows.cuh"
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

// While the kernel before still runs, a block goes through its work once
// without storing: so the code, and where the data lies, are in the caches when
// the sums are there. Nothing of that is kept in L1, which would not see the
// other kernel's stores.
template <typename Part, typename Out>
__global__ void __launch_bounds__(kQuadThreads, 3)
    AddAndNormQuads(const __grid_constant__ ResidualNormArgs args) {
  __shared__ float shared[kQuadThreads / kWarp];
  cudaTriggerProgrammaticLaunchCompletion();
  const int64_t row = blockIdx.x;
  const Part* const parts =
      static_cast<const Part*>(args.parts) + row * args.cols;
  float* const residual = args.residual + row * args.cols;
#pragma unroll 1
  for (bool live = false;; live = true) {
    if (live) cudaGridDependencySynchronize();
    float x[kQuads][4] = {};
    float squares = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = QuadColumn(q);
      if (i >= args.cols) continue;
      LoadQuad(residual + i, /*aligned=*/true, x[q]);
    }
#pragma unroll 1
    for (int part = 0; part < args.num_parts; ++part) {
      const float factor = live ? PartScale(args, part, row) : 1.0f;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int i = QuadColumn(q);
        float y[4] = {};
        if (i < args.cols) {
          LoadQuad(parts + part * args.part_stride + i, /*aligned=*/true, y);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) x[q][e] += factor * y[e];
      }
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int e = 0; e < 4; ++e) squares += x[q][e] * x[q][e];
    }
    const float inverse =
        InverseRms(BlockSum(squares, shared), args.cols, args.eps);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = QuadColumn(q);
      if (i >= args.cols) continue;
      if (live) StoreFour(x[q], residual + i);
      if (args.norm_weight == nullptr) continue;
      float weight[4];
      LoadFour(args.norm_weight + i, weight);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[q][e] *= inverse * weight[e];
      Out* const normed = static_cast<Out*>(args.normed) + row * args.cols + i;
      if (live) StoreFour(x[q], normed);
    }
    if (live) return;
    __syncthreads();
  }
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
        LaunchOverlapped(AddAndNormQuads<Part, Out>, blocks, kQuadThreads, 0,
                         stream, args);
      } else {
        LaunchOverlapped(AddAndNorm<Part, Out>, blocks, kNormThreads, 0, stream,
                         args);
      }
    });
  });
}

}  // namespace ring::cuda
