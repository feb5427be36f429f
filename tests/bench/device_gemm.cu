#include "tests/bench/device_gemm.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda_stream.cuh"

namespace ring {
namespace {

constexpr int64_t kSize = 8192;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;

// Uniform in (-1, 1), by a hash of the index.
template <typename T>
__global__ void FillRandom(T* values, int64_t n, uint32_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += step) {
    uint32_t bits = static_cast<uint32_t>(i) * 0x9e3779b9u + seed;
    bits = (bits ^ bits >> 16) * 0x85ebca6bu;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
    const float value = static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f;
    values[i] = T(value);
  }
}

template <typename T>
T* RandomMatrix(uint32_t seed) {
  T* values = nullptr;
  RING_CUDA_CHECK(cudaMalloc(&values, kSize * kSize * sizeof(T)));
  FillRandom<<<1024, 256>>>(values, kSize * kSize, seed);
  cuda::CheckLaunch("FillRandom");
  return values;
}

template <typename T>
double PackagedTflops(cudaDataType_t type) {
  T* const a = RandomMatrix<T>(1);
  T* const b = RandomMatrix<T>(2);
  __nv_bfloat16* const c = RandomMatrix<__nv_bfloat16>(3);
  void* workspace = nullptr;
  RING_CUDA_CHECK(cudaMalloc(&workspace, kWorkspaceBytes));
  cublasLtHandle_t handle;
  RING_CUBLAS_CHECK(cublasLtCreate(&handle));
  cublasLtMatmulDesc_t product;
  RING_CUBLAS_CHECK(
      cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  RING_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(
      product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  cublasLtMatrixLayout_t in;
  cublasLtMatrixLayout_t out;
  RING_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&in, type, kSize, kSize, kSize));
  RING_CUBLAS_CHECK(
      cublasLtMatrixLayoutCreate(&out, CUDA_R_16BF, kSize, kSize, kSize));
  cublasLtMatmulPreference_t preference;
  RING_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  RING_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
      sizeof(kWorkspaceBytes)));
  cublasLtMatmulHeuristicResult_t found;
  int num_found = 0;
  RING_CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(
      handle, product, in, in, out, out, preference, 1, &found, &num_found));
  RING_CHECK_EQ(num_found, 1);
  const float one = 1;
  const float zero = 0;
  cudaEvent_t begin;
  cudaEvent_t end;
  RING_CUDA_CHECK(cudaEventCreate(&begin));
  RING_CUDA_CHECK(cudaEventCreate(&end));
  constexpr int kRepeats = 10;
  std::vector<float> samples;
  for (int i = 0; i < 8; ++i) {  // the first one warms up
    RING_CUDA_CHECK(cudaEventRecord(begin));
    for (int k = 0; k < kRepeats; ++k) {
      RING_CUBLAS_CHECK(cublasLtMatmul(handle, product, &one, a, in, b, in,
                                       &zero, c, out, c, out, &found.algo,
                                       workspace, kWorkspaceBytes, nullptr));
    }
    RING_CUDA_CHECK(cudaEventRecord(end));
    RING_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    RING_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) samples.push_back(ms / kRepeats);
  }
  std::sort(samples.begin(), samples.end());
  RING_CUDA_CHECK(cudaEventDestroy(begin));
  RING_CUDA_CHECK(cudaEventDestroy(end));
  RING_CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
  RING_CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(in));
  RING_CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(out));
  RING_CUBLAS_CHECK(cublasLtMatmulDescDestroy(product));
  RING_CUBLAS_CHECK(cublasLtDestroy(handle));
  for (void* memory : {static_cast<void*>(a), static_cast<void*>(b),
                       static_cast<void*>(c), workspace}) {
    RING_CUDA_CHECK(cudaFree(memory));
  }
  return 2.0 * kSize * kSize * kSize / samples[samples.size() / 2] * 1e-9;
}

}  // namespace

double PackagedBf16Tflops() {
  return PackagedTflops<__nv_bfloat16>(CUDA_R_16BF);
}
double PackagedE4M3Tflops() {
  return PackagedTflops<__nv_fp8_e4m3>(CUDA_R_8F_E4M3);
}

}  // namespace ring
