// A block owns a row and a thread two times 4 of its columns at a time. Bound:
// latency for few rows, memory for many.
#include "kernels/grouped_ffn/combine.cuh"

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"

namespace ring::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kQuads = 2;  // of a thread at a time
constexpr int kColumnsAtOnce = 4 * kQuads * kThreads;

struct KernelArgs {
  CombineArgs combine;
  ResidualNormArgs norm;
};

// Past L1, which would not see another kernel's stores.
__device__ __forceinline__ void LoadQuad(const float* from, float (&x)[4]) {
  const float4 raw = __ldcg(reinterpret_cast<const float4*>(from));
  x[0] = raw.x;
  x[1] = raw.y;
  x[2] = raw.z;
  x[3] = raw.w;
}

// x = the row's sums of the columns from `begin` on that are the thread's.
// Before the kernel has waited (not `live`) places may be anything and are not
// used.
__device__ __forceinline__ void SumSlots(const CombineArgs& args, int64_t row,
                                         int begin, bool live,
                                         float (&x)[kQuads][4]) {
  const auto add = [&](float weight, const float* z) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = begin + (q * kThreads + static_cast<int>(threadIdx.x)) * 4;
      if (i >= args.hidden) continue;
      float value[4];
      LoadQuad(z + i, value);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[q][e] += weight * value[e];
    }
  };
#pragma unroll 4
  for (int slot = 0; slot < args.top_k; ++slot) {
    const int64_t unit = row * args.top_k + slot;
    int64_t place = unit;
    if (args.place_of != nullptr) {
      if (live) place = __ldcg(args.place_of + unit);
    } else if (__ldcg(args.experts + unit) < 0) {
      place = -1;
    }
    if (place >= 0) {
      add(__ldcg(args.weights + unit), args.z + place * args.hidden);
    }
  }
  const int64_t shared_row = row - args.shared_begin;
  if (shared_row >= 0 && shared_row < args.shared_rows) {
    add(1.0f, args.z_shared + shared_row * args.hidden);
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    SumRows(const __grid_constant__ CombineArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t row = blockIdx.x;
  float* const y = args.y + row * args.hidden;
#pragma unroll 1
  for (int begin = 0; begin < args.hidden; begin += kColumnsAtOnce) {
    float x[kQuads][4] = {};
    SumSlots(args, row, begin, true, x);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = begin + (q * kThreads + static_cast<int>(threadIdx.x)) * 4;
      if (i >= args.hidden) continue;
      if (args.accumulate) {
        float old[4];
        LoadQuad(y + i, old);
#pragma unroll
        for (int e = 0; e < 4; ++e) x[q][e] = old[e] + x[q][e];
      }
      StoreFour(x[q], y + i);
    }
  }
}

// While the kernel before still runs, a block goes through its work once
// without storing, as AddAndNormQuads does; sums and squares are added in the
// order of that kernel.
template <typename Out>
__global__ void __launch_bounds__(kThreads, 2)
    SumAndNormRows(const __grid_constant__ KernelArgs args) {
  __shared__ float shared[kThreads / kWarp];
  cudaTriggerProgrammaticLaunchCompletion();
  const int64_t row = blockIdx.x;
  const ResidualNormArgs& norm = args.norm;
  const int cols = args.combine.hidden;
  float* const residual = norm.residual + row * cols;
#pragma unroll 1
  for (bool live = false;; live = true) {
    if (live) cudaGridDependencySynchronize();
    float x[kQuads][4] = {};
    SumSlots(args.combine, row, 0, live, x);
    float squares = 0;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = (q * kThreads + static_cast<int>(threadIdx.x)) * 4;
      float old[4] = {};
      if (i < cols) LoadQuad(residual + i, old);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[q][e] = old[e] + x[q][e];
        squares += x[q][e] * x[q][e];
      }
    }
    const float inverse = InverseRms(BlockSum(squares, shared), cols, norm.eps);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int i = (q * kThreads + static_cast<int>(threadIdx.x)) * 4;
      if (i >= cols) continue;
      if (live) StoreFour(x[q], residual + i);
      float weight[4];
      LoadFour(norm.norm_weight + i, weight);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[q][e] *= inverse * weight[e];
      Out* const normed = static_cast<Out*>(norm.normed) + row * cols + i;
      if (live) StoreFour(x[q], normed);
    }
    if (live) return;
    __syncthreads();
  }
}

}  // namespace

bool TakesNorm(const ResidualNormArgs& norm) {
  const auto aligned = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
  };
  return norm.cols <= kColumnsAtOnce && norm.cols % 4 == 0 &&
         norm.norm_weight != nullptr && aligned(norm.residual) &&
         aligned(norm.norm_weight) && aligned(norm.normed);
}

void CombineSlots(const CombineArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  const unsigned blocks = Blocks(args.rows, 1);
  if (args.norm == nullptr) {
    LaunchOverlapped(SumRows, blocks, kThreads, 0, stream, args);
    return;
  }
  RING_CHECK(TakesNorm(*args.norm));
  RING_CHECK(!args.accumulate);
  const KernelArgs both = {args, *args.norm};
  WithFloatType(args.norm->normed_dtype, [&](auto out) {
    LaunchOverlapped(SumAndNormRows<decltype(out)>, blocks, kThreads, 0, stream,
                     both);
  });
}

}  // namespace ring::cuda
