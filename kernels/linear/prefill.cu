// Prompt rows: cuBLAS where both factors have one type; bf16 times e4m3 with
// quantised activations (tensor_gemm.cu) or, for matrices that are not for it,
// in tiles of bf16 (tile_gemm.cuh).
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/linear/linear_kernels.cuh"
#include "kernels/linear/tensor_gemm.h"
#include "kernels/linear/tile_gemm.cuh"

namespace ring::cuda {
namespace {

template <typename W, typename Y>
__global__ void __launch_bounds__(kTileThreads)
    MultiplyRowTiles(WeightMatrix w, RowBlock block) {
  const int64_t row = int64_t{blockIdx.y} * kTile;
  const int64_t n = int64_t{blockIdx.x} * kTile;
  const BFloat16* const x = static_cast<const BFloat16*>(block.x);
  TileSums sums;
  MultiplyTile<W>(
      w, n,
      [&](int i) -> const BFloat16* {
        return row + i < block.rows ? x + (row + i) * w.cols : nullptr;
      },
      &sums);
  Y* const y = static_cast<Y*>(block.y);
  ForTileSums([&](int i, int j, int m, int o, int v) {
    if (row + i < block.rows && n + j < w.rows) {
      y[(row + i) * w.rows + n + j] = Narrow<Y>(sums.v[m][o][v]);
    }
  });
}

cudaDataType_t CublasType(DType dtype) {
  return dtype == DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
}

// Row-major y = x w^T is column-major y^T = w x^T.
void Gemm(const LinearArgs& args, const RowBlock& block, Stream* stream) {
  const WeightMatrix& w = args.weight;
  const float one = 1;
  const float zero = 0;
  RING_CUBLAS_CHECK(cublasGemmEx(
      stream->cublas(), CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(w.rows),
      static_cast<int>(block.rows), static_cast<int>(w.cols), &one, w.data,
      CublasType(w.dtype), static_cast<int>(w.row_stride), block.x,
      CublasType(args.x_dtype), static_cast<int>(w.cols), &zero, block.y,
      CublasType(args.y_dtype), static_cast<int>(w.rows), CUBLAS_COMPUTE_32F,
      CUBLAS_GEMM_DEFAULT));
}

// With the rows as e4m3 in the scratch area, which bounds those of a pass.
void QuantisedGemm(const LinearArgs& args, const RowBlock& block,
                   Stream* stream) {
  const WeightMatrix& w = args.weight;
  constexpr int64_t kCounterFloats = 64;  // keeps what follows aligned
  const int64_t row_floats = ScaleStride(w.cols) + w.cols / 4;
  const int64_t chunk =
      (stream->scratch_bytes() / int64_t{sizeof(float)} - kCounterFloats) /
      row_floats / kTileRows * kTileRows;
  float* const scratch = stream->Scratch<float>(
      kCounterFloats + std::min(chunk, block.rows) * row_floats);
  for (int64_t row = 0; row < block.rows; row += chunk) {
    QuantiseRowsArgs rows;
    rows.x = static_cast<const BFloat16*>(block.x) + row * w.cols;
    rows.rows = std::min(chunk, block.rows - row);
    rows.cols = w.cols;
    rows.scales = scratch + kCounterFloats;
    rows.quantised = rows.scales + rows.rows * ScaleStride(w.cols);
    QuantiseRows(rows, stream);
    TensorGemmArgs gemm;
    gemm.x = rows.quantised;
    gemm.x_scales = rows.scales;
    gemm.x_rows = rows.rows;
    gemm.w.first = w;
    gemm.y = static_cast<char*>(block.y) +
             row * w.rows * static_cast<int64_t>(SizeOf(args.y_dtype));
    gemm.y_dtype = args.y_dtype;
    gemm.counter = reinterpret_cast<int32_t*>(scratch);
    TensorGemm(gemm, stream);
  }
}

}  // namespace

void MultiplyLinear(const LinearArgs& args, int64_t begin, int64_t end,
                    Stream* stream) {
  const RowBlock block = RowsOf(args, begin, end);
  const DType w_dtype = args.weight.dtype;
  const bool one_type =
      w_dtype == args.x_dtype &&
      (args.x_dtype == DType::kBFloat16 || args.y_dtype == DType::kFloat32);
  if (one_type && args.weight.cols > 0) {
    Gemm(args, block, stream);
  } else if (args.x_dtype == DType::kBFloat16 &&
             w_dtype == DType::kFloat8E4M3 && PrefersTensorGemm(args.weight)) {
    QuantisedGemm(args, block, stream);
  } else if (args.x_dtype == DType::kBFloat16 &&
             w_dtype == DType::kFloat8E4M3) {
    const dim3 grid(Blocks(args.weight.rows, kTile), Blocks(block.rows, kTile));
    WithFloatType(args.y_dtype, [&](auto y) {
      MultiplyRowTiles<Float8E4M3, decltype(y)>
          <<<grid, kTileThreads, 0, stream->get()>>>(args.weight, block);
    });
    CheckLaunch("MultiplyRowTiles");
  } else {
    StreamLinear(args, begin, end, stream);
  }
}

}  // namespace ring::cuda
