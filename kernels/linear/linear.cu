// Decode rows and all rows of types that no GEMM takes: a warp owns two weight
// rows and passes over them once for up to 8 activation rows, 16 bytes a lane
// and load. Bound: memory, the weights read once; activations come from L1.
// Prompt rows: cuBLAS where both factors have one type, else tiles on tensor
// cores (tile_gemm.cuh).
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/device_matrix.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/tile_gemm.cuh"

namespace ring::cuda {
namespace {

constexpr int kOutPerWarp = 2;
constexpr int kStreamWarps = 4;
constexpr int kMaxStreamRows = 8;

// LinearArgs restricted to a block of rows.
struct RowBlock {
  const void* x;
  void* y;
  int64_t rows;
};

template <typename W, typename X, typename Y, bool kWide, int kRows>
__global__ void __launch_bounds__(kStreamWarps* kWarp)
    StreamRows(WeightMatrix w, RowBlock block) {
  const int64_t warp = int64_t{blockIdx.x} * kStreamWarps + threadIdx.x / kWarp;
  const int64_t n = warp * kOutPerWarp;
  if (n >= w.rows) return;
  const X* x[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const X*>(block.x) +
           (r < block.rows ? r : block.rows - 1) * w.cols;
  }
  float acc[kRows][kOutPerWarp];
  WarpDot<W, X, kWide>(w, n, x, acc);
  if (threadIdx.x % kWarp != 0) return;
  Y* const y = static_cast<Y*>(block.y);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int o = 0; o < kOutPerWarp; ++o) {
      if (r < block.rows && n + o < w.rows) {
        y[r * w.rows + n + o] = Narrow<Y>(acc[r][o]);
      }
    }
  }
}

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

RowBlock RowsOf(const LinearArgs& args, int64_t begin, int64_t end) {
  RowBlock block;
  block.x =
      static_cast<const char*>(args.x) +
      begin * args.weight.cols * static_cast<int64_t>(SizeOf(args.x_dtype));
  block.y =
      static_cast<char*>(args.y) +
      begin * args.weight.rows * static_cast<int64_t>(SizeOf(args.y_dtype));
  block.rows = end - begin;
  return block;
}

template <typename W, typename X, typename Y, bool kWide>
void LaunchStream(const WeightMatrix& w, const RowBlock& block,
                  Stream* stream) {
  const unsigned grid = Blocks(w.rows, kStreamWarps * kOutPerWarp);
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kStreamWarps * kWarp, 0, stream->get()>>>(w, block);
    CheckLaunch("StreamRows");
  };
  if (block.rows == 1) return launch(StreamRows<W, X, Y, kWide, 1>);
  if (block.rows == 2) return launch(StreamRows<W, X, Y, kWide, 2>);
  if (block.rows <= 4) return launch(StreamRows<W, X, Y, kWide, 4>);
  launch(StreamRows<W, X, Y, kWide, 8>);
}

void StreamAll(const LinearArgs& args, int64_t begin, int64_t end,
               Stream* stream) {
  const bool wide = AllowsWideLoads(args.weight);
  for (int64_t row = begin; row < end; row += kMaxStreamRows) {
    const RowBlock block =
        RowsOf(args, row, std::min(row + kMaxStreamRows, end));
    WithWeightType(args.weight.dtype, [&](auto w) {
      WithFloatType(args.x_dtype, [&](auto x) {
        WithFloatType(args.y_dtype, [&](auto y) {
          using W = decltype(w);
          using X = decltype(x);
          using Y = decltype(y);
          if (wide) {
            LaunchStream<W, X, Y, true>(args.weight, block, stream);
          } else {
            LaunchStream<W, X, Y, false>(args.weight, block, stream);
          }
        });
      });
    });
  }
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

void MultiplyPrompt(const LinearArgs& args, Stream* stream) {
  const RowBlock block = RowsOf(args, args.decode_rows, args.rows);
  const DType w_dtype = args.weight.dtype;
  const bool one_type =
      w_dtype == args.x_dtype &&
      (args.x_dtype == DType::kBFloat16 || args.y_dtype == DType::kFloat32);
  if (one_type && args.weight.cols > 0) {
    Gemm(args, block, stream);
  } else if (args.x_dtype == DType::kBFloat16 &&
             w_dtype == DType::kFloat8E4M3) {
    const dim3 grid(Blocks(args.weight.rows, kTile), Blocks(block.rows, kTile));
    WithFloatType(args.y_dtype, [&](auto y) {
      MultiplyRowTiles<Float8E4M3, decltype(y)>
          <<<grid, kTileThreads, 0, stream->get()>>>(args.weight, block);
    });
    CheckLaunch("MultiplyRowTiles");
  } else {
    StreamAll(args, args.decode_rows, args.rows, stream);
  }
}

}  // namespace

void Linear(const LinearArgs& args, Stream* stream) {
  if (args.rows == 0 || args.weight.rows == 0) return;
  StreamAll(args, 0, args.decode_rows, stream);
  if (args.rows > args.decode_rows) MultiplyPrompt(args, stream);
}

}  // namespace ring::cuda
