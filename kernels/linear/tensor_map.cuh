// Maps of matrices for the copy engine, made on the host.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/cuda_stream.cuh"

namespace ring::cuda {

// Rows of a tile in shared memory, swizzled.
inline constexpr int kMapRowBytes = 128;

// The driver's function, found without linking the driver.
inline PFN_cuTensorMapEncodeTiled_v12000 TensorMapEncoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    RING_CUDA_CHECK(cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    RING_CHECK(found == cudaDriverEntryPointSuccess);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// [matrices, rows, cols] of `dtype`, fetched in boxes of box_rows rows of
// kMapRowBytes. Two dimensions if `matrices` is 0.
struct MapArgs {
  const void* data;
  DType dtype;
  int64_t cols;
  int64_t rows;
  int64_t row_stride;  // elements
  int box_rows;
  int64_t matrices = 0;
  int64_t matrix_stride = 0;  // bytes
};

inline CUtensorMap MakeMap(const MapArgs& args) {
  const int64_t element = static_cast<int64_t>(SizeOf(args.dtype));
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(args.cols),
                               static_cast<cuuint64_t>(args.rows),
                               static_cast<cuuint64_t>(args.matrices)};
  const cuuint64_t strides[2] = {
      static_cast<cuuint64_t>(args.row_stride * element),
      static_cast<cuuint64_t>(args.matrix_stride)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(kMapRowBytes / element),
                             static_cast<cuuint32_t>(args.box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = TensorMapEncoder()(
      &map,
      element == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                   : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      args.matrices == 0 ? 2 : 3, const_cast<void*>(args.data), sizes, strides,
      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  RING_CHECK(result == CUDA_SUCCESS)
      << "tensor map of " << args.matrices << " x " << args.rows << " x "
      << args.cols << ", row stride " << args.row_stride << ": error "
      << static_cast<int>(result);
  return map;
}

}  // namespace ring::cuda
