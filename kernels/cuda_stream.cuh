// What a CUDA launcher is given: a stream and the memory that belongs to it.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/base/check.h"

// A CUDA or cuBLAS call that may not fail once the backend stands.
#define RING_CUDA_CHECK(expression)                                \
  do {                                                             \
    const cudaError_t ring_error_ = (expression);                  \
    RING_CHECK(ring_error_ == cudaSuccess)                         \
        << #expression << ": " << cudaGetErrorString(ring_error_); \
  } while (false)
#define RING_CUBLAS_CHECK(expression)                                  \
  do {                                                                 \
    const cublasStatus_t ring_status_ = (expression);                  \
    RING_CHECK(ring_status_ == CUBLAS_STATUS_SUCCESS)                  \
        << #expression << ": " << cublasGetStatusString(ring_status_); \
  } while (false)

namespace ring::cuda {

// Launchers of one queue run in order, so they share one scratch area: what
// an op leaves there is gone at the next op. All members are borrowed from the
// backend. Confined to the engine thread.
class Stream {
 public:
  struct Parts {
    cudaStream_t stream = nullptr;
    cublasHandle_t cublas = nullptr;  // bound to `stream`
    void* scratch = nullptr;          // aligned to 256 bytes
    int64_t scratch_bytes = 0;
  };
  // Takes the end of the scratch area for the counters.
  explicit Stream(const Parts& parts) : parts_(parts) {
    RING_CHECK_GE(parts.scratch_bytes, kCounterBytes);
    RING_CUDA_CHECK(
        cudaMemsetAsync(counters(), 0, kCounterBytes, parts.stream));
  }

  cudaStream_t get() const { return parts_.stream; }
  cublasHandle_t cublas() const { return parts_.cublas; }

  // The first `count` elements of the scratch area.
  template <typename T>
  T* Scratch(int64_t count) const {
    RING_CHECK_LE(count * static_cast<int64_t>(sizeof(T)), scratch_bytes());
    return static_cast<T*>(parts_.scratch);
  }
  int64_t scratch_bytes() const { return parts_.scratch_bytes - kCounterBytes; }

  // What blocks of one launch tell each other with. All zero between launches:
  // whoever counts here resets what it has counted.
  static constexpr int64_t kCounterBytes = 64 << 10;
  static constexpr int64_t kNumCounters = kCounterBytes / 4;
  unsigned* counters() const {
    return reinterpret_cast<unsigned*>(static_cast<char*>(parts_.scratch) +
                                       scratch_bytes());
  }

 private:
  const Parts parts_;
};

// Called after every launch: a wrong launch configuration shows here, a fault
// inside a kernel at the next synchronisation.
inline void CheckLaunch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  RING_CHECK(error == cudaSuccess)
      << kernel << ": " << cudaGetErrorString(error);
}

// Launches a kernel that may start while the one before it in the stream still
// runs. It calls cudaGridDependencySynchronize before it touches anything that
// an earlier kernel wrote, reads or still has to read; what loading put into
// memory, weights above all, it may fetch before. What it only looks at to have
// it in the caches it may read before too, past L1 and without keeping it.
template <typename... Params, typename... Args>
void LaunchDependent(void (*kernel)(Params...), dim3 grid, dim3 block,
                     size_t shared_bytes, cudaStream_t stream,
                     const Args&... args) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  RING_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}
template <typename... Params, typename... Args>
void LaunchDependent(void (*kernel)(Params...), dim3 grid, dim3 block,
                     size_t shared_bytes, const Stream* stream,
                     const Args&... args) {
  LaunchDependent(kernel, grid, block, shared_bytes, stream->get(), args...);
}

// As LaunchDependent, for what a decode step is made of: kernels that take
// little time and little shared memory. A multiprocessor splits its memory
// between shared memory and L1, and blocks of a kernel that is given another
// split wait until it is empty; then nothing is gained by starting early. So
// all of these kernels prefer the same.
template <typename... Params, typename... Args>
void LaunchOverlapped(void (*kernel)(Params...), dim3 grid, dim3 block,
                      size_t shared_bytes, const Stream* stream,
                      const Args&... args) {
  constexpr int kSharedPercent = 43;  // 100 of 228 KiB
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributePreferredSharedMemoryCarveout, kSharedPercent));
  LaunchDependent(kernel, grid, block, shared_bytes, stream, args...);
}

// Number of blocks of `size` that cover n, as a grid dimension.
inline unsigned Blocks(int64_t n, int64_t size) {
  const int64_t blocks = (n + size - 1) / size;
  RING_CHECK_LE(blocks, int64_t{0x7fffffff});
  return static_cast<unsigned>(blocks);
}

}  // namespace ring::cuda
