// Decode rows stream the weights, 16 bytes a lane and load. StreamFragments,
// for bf16 rows: up to 16 activation rows are multiplied on tensor cores while
// the weights pass by. StreamRows, for all other types and shapes: a warp owns
// two weight rows and up to 8 activation rows. Bound of both: memory, the
// weights read once; activations come from L1. Shared memory of
// StreamFragments: the sums of 8 warps, 9 KiB.
#include "kernels/cuda_stream.cuh"
#include "kernels/linear/device_matrix.cuh"
#include "kernels/linear/linear_kernels.cuh"
#include "kernels/linear/tile_gemm.cuh"

namespace ring::cuda {
namespace {

constexpr int kOutPerWarp = 2;
constexpr int kStreamWarps = 4;
constexpr int kMaxStreamRows = 8;

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

// Where a lane's 16 bytes of weights become fragments as they are: bf16 rows of
// up to 16, dimensions that fill fragments. A block owns 16 weight rows; its 8
// warps take every 8th step of 4 lanes x 16 bytes a row. The order of columns
// within a step differs from the one the instruction names, for both factors
// alike, which a sum does not see. An activation row is a column of the
// fragments, so its bits do not depend on the others.
template <typename W>
struct FragmentStep {
  static constexpr int kUnit = kWideBytes / static_cast<int>(sizeof(W));
  static constexpr int kColumns = 4 * kUnit;
};
constexpr int kFragmentWarps = 8;
constexpr int kFragmentRows = 16;  // of the weights
constexpr int kGroupRows = 8;      // activation rows of one fragment

// 16 bytes of weights as pairs of bf16, which is exact.
template <typename W>
__device__ void LoadPairs(const W* from,
                          uint32_t (&pairs)[FragmentStep<W>::kUnit / 2]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(W) == 2) {
      pairs[i] = words[i];
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const __half2_raw narrow = __nv_cvt_fp8x2_to_halfraw2(
            static_cast<__nv_fp8x2_storage_t>(words[i] >> (16 * half)),
            __NV_E4M3);
        const float2 wide = __half22float2(__half2(narrow));
        // Both values have at most 4 significant bits: the upper halves.
        pairs[2 * i + half] = __byte_perm(__float_as_uint(wide.x),
                                          __float_as_uint(wide.y), 0x7632);
      }
    }
  }
}

template <typename W, typename Y, int kGroups>
__global__ void __launch_bounds__(kFragmentWarps* kWarp)
    StreamFragments(WeightMatrix w, RowBlock block) {
  constexpr int kUnit = FragmentStep<W>::kUnit;
  constexpr int kColumns = FragmentStep<W>::kColumns;
  constexpr int kPairs = kUnit / 2;
  __shared__ float partial[kFragmentWarps][kGroups * kGroupRows]
                          [kFragmentRows + 1];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int row = lane / 4;
  const int unit = lane % 4 * kUnit;
  const int64_t n = int64_t{blockIdx.x} * kFragmentRows;
  const int64_t low = min(n + row, w.rows - 1);
  const int64_t high = min(n + row + 8, w.rows - 1);
  const W* const data = static_cast<const W*>(w.data) + unit;
  const BFloat16* x[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int64_t i = min(int64_t{g * kGroupRows + row}, block.rows - 1);
    x[g] = static_cast<const BFloat16*>(block.x) + i * w.cols + unit;
  }
  float sums[kGroups][4] = {};
#pragma unroll 4
  for (int64_t k = warp * kColumns; k < w.cols;
       k += kFragmentWarps * kColumns) {
    uint32_t a_low[kPairs];
    uint32_t a_high[kPairs];
    LoadPairs(data + low * w.row_stride + k, a_low);
    LoadPairs(data + high * w.row_stride + k, a_high);
    float low_scale = 1;
    float high_scale = 1;
    if constexpr (sizeof(W) == 1) {
      low_scale = ScaleAt(w, low, k);
      high_scale = ScaleAt(w, high, k);
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      uint32_t b[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs / 4; ++i) {
        const uint4 raw = reinterpret_cast<const uint4*>(x[g] + k)[i];
        b[4 * i] = raw.x;
        b[4 * i + 1] = raw.y;
        b[4 * i + 2] = raw.z;
        b[4 * i + 3] = raw.w;
      }
      float part[4] = {};
#pragma unroll
      for (int i = 0; i < kPairs; i += 2) {
        MultiplyFragment({a_low[i], a_high[i], a_low[i + 1], a_high[i + 1]},
                         {b[i], b[i + 1]}, sizeof(W) == 1 ? part : sums[g]);
      }
      if constexpr (sizeof(W) == 1) {
        sums[g][0] += low_scale * part[0];
        sums[g][1] += low_scale * part[1];
        sums[g][2] += high_scale * part[2];
        sums[g][3] += high_scale * part[3];
      }
    }
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      partial[warp][g * kGroupRows + lane % 4 * 2 + v % 2][row + v / 2 * 8] =
          sums[g][v];
    }
  }
  __syncthreads();
  const int i = threadIdx.x / kFragmentRows;
  const int o = threadIdx.x % kFragmentRows;
  if (i >= min(int64_t{kGroups * kGroupRows}, block.rows) || n + o >= w.rows) {
    return;
  }
  float sum = 0;
#pragma unroll
  for (int part = 0; part < kFragmentWarps; ++part) sum += partial[part][i][o];
  static_cast<Y*>(block.y)[i * w.rows + n + o] = Narrow<Y>(sum);
}
static_assert(kFragmentWarps * kWarp == 2 * kGroupRows * kFragmentRows);

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

// Whether StreamFragments takes the product; a question of types and shapes
// alone, so that a row meets the same kernel in every batch.
bool FillsFragments(const LinearArgs& args) {
  const WeightMatrix& w = args.weight;
  if (args.x_dtype != DType::kBFloat16 || !AllowsWideLoads(w) || w.cols == 0 ||
      reinterpret_cast<uintptr_t>(args.x) % kWideBytes != 0) {
    return false;
  }
  if (w.dtype == DType::kBFloat16) {
    return w.cols % FragmentStep<BFloat16>::kColumns == 0;
  }
  constexpr int kColumns = FragmentStep<Float8E4M3>::kColumns;
  return w.dtype == DType::kFloat8E4M3 && w.cols % kColumns == 0 &&
         w.scale_col_offset % kColumns == 0;
}

template <typename W>
void LaunchFragments(const LinearArgs& args, const RowBlock& block,
                     Stream* stream) {
  const unsigned grid = Blocks(args.weight.rows, kFragmentRows);
  WithFloatType(args.y_dtype, [&](auto type) {
    using Y = decltype(type);
    const auto kernel = block.rows <= kGroupRows ? StreamFragments<W, Y, 1>
                                                 : StreamFragments<W, Y, 2>;
    kernel<<<grid, kFragmentWarps * kWarp, 0, stream->get()>>>(args.weight,
                                                               block);
    CheckLaunch("StreamFragments");
  });
}

void StreamAllFragments(const LinearArgs& args, int64_t begin, int64_t end,
                        Stream* stream) {
  constexpr int64_t kRows = 2 * kGroupRows;
  for (int64_t row = begin; row < end; row += kRows) {
    const RowBlock block = RowsOf(args, row, std::min(row + kRows, end));
    if (args.weight.dtype == DType::kBFloat16) {
      LaunchFragments<BFloat16>(args, block, stream);
    } else {
      LaunchFragments<Float8E4M3>(args, block, stream);
    }
  }
}

}  // namespace

void StreamLinear(const LinearArgs& args, int64_t begin, int64_t end,
                  Stream* stream) {
  if (FillsFragments(args)) {
    return StreamAllFragments(args, begin, end, stream);
  }
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

}  // namespace ring::cuda
