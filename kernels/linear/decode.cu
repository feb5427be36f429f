// Decode rows stream the weights. StreamFragments, for bf16 rows: a block owns
// 16 or 32 weight rows, which go from memory to tensor cores
// (fragment_stream.cuh).
// StreamRows, for all other types and shapes: a warp owns two weight rows and
// up to 8 activation rows. Bound of both: memory, the weights read once for
// every 16 or 8 rows. Shared memory: the sums of 8 warps, up to 17 KiB.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/linear/device_matrix.cuh"
#include "kernels/linear/fragment_stream.cuh"
#include "kernels/linear/linear_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kOutPerWarp = 2;
constexpr int kRowWarps = 4;
constexpr int kMaxRows = 8;

template <typename W, typename X, typename Y, bool kWide, int kRows>
__global__ void __launch_bounds__(kRowWarps* kWarp)
    StreamRows(WeightMatrix w, RowBlock block) {
  const int64_t warp = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp;
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

// One or two matrices that the same rows pass.
struct FragmentArgs {
  WeightMatrix w[2];
  void* y[2];
  const BFloat16* x;
  int64_t rows;
  unsigned first_blocks;  // those of w[0]; the others are w[1]'s
};

// A block's weight rows times up to 8 or 16 activation rows at a time; what a
// pass reads again comes from L2.
template <typename W, typename Y, int kTiles, int kGroups, int kBlocksEach>
__global__ void __launch_bounds__(kStreamThreads, kBlocksEach)
    StreamFragments(const __grid_constant__ FragmentArgs args) {
  constexpr int kRows = kTiles * kFragmentRows;
  constexpr int kTokens = kGroups * kGroupRows;
  __shared__ StreamPartial<kTiles, kGroups> partial;
  const int lane = threadIdx.x % kWarp;
  const int second = blockIdx.x >= args.first_blocks ? 1 : 0;
  const WeightMatrix& w = args.w[second];
  const int64_t n =
      int64_t{blockIdx.x - (second == 0 ? 0 : args.first_blocks)} * kRows;
  StreamRow<W> low[kTiles];
  StreamRow<W> high[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    low[t] = StreamRowOf<W>(w, n + t * kFragmentRows + lane / 4);
    high[t] = StreamRowOf<W>(w, n + t * kFragmentRows + lane / 4 + 8);
  }
  constexpr bool kAhead = kGroups == 1 && kBlocksEach < 4;
  using Weights = WeightStream<W, kTiles, kAhead>;
  Weights stream(low, high, {w.scales, w.scales}, static_cast<int>(w.cols),
                 static_cast<int>(w.scale_col_offset));
  stream.Begin();
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  for (int64_t first = 0; first < args.rows; first += kTokens) {
    const int count =
        static_cast<int>(min(int64_t{kTokens}, args.rows - first));
    const BFloat16* x[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int64_t i = first + min(g * kGroupRows + lane / 4, count - 1);
      x[g] = args.x + i * w.cols;
    }
    float sums[kTiles][kGroups][4];
    stream.Multiply(x, sums);
    if (first + kTokens < args.rows) stream.Begin();
    partial.Put(sums);
    __syncthreads();
    for (int o = threadIdx.x; o < count * kRows; o += kStreamThreads) {
      const int row = o % kRows;
      const int token = o / kRows;
      if (n + row < w.rows) {
        static_cast<Y*>(args.y[second])[(first + token) * w.rows + n + row] =
            Narrow<Y>(partial.Get(token, row));
      }
    }
    __syncthreads();
  }
}

template <typename W, typename X, typename Y, bool kWide>
void LaunchStream(const WeightMatrix& w, const RowBlock& block,
                  Stream* stream) {
  const unsigned grid = Blocks(w.rows, kRowWarps * kOutPerWarp);
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kRowWarps * kWarp, 0, stream->get()>>>(w, block);
    CheckLaunch("StreamRows");
  };
  if (block.rows == 1) return launch(StreamRows<W, X, Y, kWide, 1>);
  if (block.rows == 2) return launch(StreamRows<W, X, Y, kWide, 2>);
  if (block.rows <= 4) return launch(StreamRows<W, X, Y, kWide, 4>);
  launch(StreamRows<W, X, Y, kWide, 8>);
}

template <typename W, int kTiles>
void LaunchFragments(const LinearArgs& args, int64_t begin, int64_t end,
                     Stream* stream) {
  constexpr int kRows = kTiles * kFragmentRows;
  const RowBlock block = RowsOf(args, begin, end);
  FragmentArgs fragments = {};
  fragments.w[0] = args.weight;
  fragments.w[1] = args.also;
  fragments.y[0] = block.y;
  fragments.y[1] = RowsOf(AlsoOf(args), begin, end).y;
  fragments.x = static_cast<const BFloat16*>(block.x);
  fragments.rows = block.rows;
  fragments.first_blocks = Blocks(args.weight.rows, kRows);
  const unsigned grid = fragments.first_blocks + Blocks(args.also.rows, kRows);
  WithFloatType(args.y_dtype, [&](auto type) {
    using Y = decltype(type);
    // More blocks than are under way at a time: better one more each, without
    // loads ahead, than a second turn for a few.
    constexpr bool kNarrow = sizeof(W) == 1 && kTiles == 2;
    const bool four = kNarrow && args.also.rows > 0;
    const auto kernel = block.rows > kGroupRows ? StreamFragments < W, Y,
               kTiles, 2,
               kNarrow ? 2 : 3 >
        : four ? StreamFragments<W, Y, kTiles, 1, 4>
               : StreamFragments<W, Y, kTiles, 1, 3>;
    LaunchOverlapped(kernel, grid, kStreamThreads, 0, stream, fragments);
  });
}

// Two tiles share the loads of activations; a small matrix is cut finer, so
// that every multiprocessor has blocks enough.
template <typename W>
void LaunchFragments(const LinearArgs& args, int64_t begin, int64_t end,
                     Stream* stream) {
  constexpr int64_t kManyRows = 8192;
  if (args.weight.rows >= kManyRows) {
    LaunchFragments<W, 2>(args, begin, end, stream);
  } else {
    LaunchFragments<W, 1>(args, begin, end, stream);
  }
}

}  // namespace

bool FragmentsTake(const LinearArgs& args) {
  const auto takes = [&](const WeightMatrix& w) {
    return w.rows == 0 || (FillsFragments(w) && w.cols == args.weight.cols &&
                           w.dtype == args.weight.dtype);
  };
  return args.x_dtype == DType::kBFloat16 && args.weight.rows > 0 &&
         takes(args.weight) && takes(args.also) &&
         reinterpret_cast<uintptr_t>(args.x) % kWideBytes == 0;
}

void StreamLinear(const LinearArgs& args, int64_t begin, int64_t end,
                  Stream* stream) {
  if (begin == end) return;
  if (FragmentsTake(args)) {
    if (args.weight.dtype == DType::kBFloat16) {
      LaunchFragments<BFloat16>(args, begin, end, stream);
    } else {
      LaunchFragments<Float8E4M3>(args, begin, end, stream);
    }
    return;
  }
  const bool wide = AllowsWideLoads(args.weight);
  for (int64_t row = begin; row < end; row += kMaxRows) {
    const RowBlock block = RowsOf(args, row, std::min(row + kMaxRows, end));
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
