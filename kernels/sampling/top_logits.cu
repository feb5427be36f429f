// A block takes a strip of a row's columns into registers and selects the
// largest logits one after the other; the last block of a row selects among the
// strips' selections. Merging takes a block per row. Bound: the rounds of a
// selection, a fold over the block each.
#include "kernels/cuda_stream.cuh"
#include "kernels/sampling/row_strips.cuh"
#include "kernels/sampling/top_logits.h"

namespace ring::cuda {
namespace {

// What a block has selected, as Ranked numbers of ids; 0: none.
struct Selection {
  uint64_t ranked[kMaxTopLogits];
};

// Selects the `count` largest of all threads' numbers, which are different, in
// descending order. largest(below): of this thread, the largest that is less;
// 0 if there is none. Called by the whole block; `to` is shared memory.
template <typename Largest>
__device__ void Select(int count, Largest largest, Selection* to) {
  uint64_t below = ~uint64_t{0};
  for (int i = 0; i < kMaxTopLogits; ++i) {
    if (i < count) {
      below = FoldBlock(largest(below),
                        [](uint64_t a, uint64_t b) { return max(a, b); });
    }
    if (threadIdx.x == 0) to->ranked[i] = i < count ? below : 0;
    __syncthreads();
  }
}

__device__ TopLogit TopLogitOf(uint64_t ranked) {
  TopLogit top;
  if (ranked == 0) return top;
  top.id = static_cast<int32_t>(~static_cast<uint32_t>(ranked));
  top.value = LogitOfKey(static_cast<uint32_t>(ranked >> 32));
  return top;
}

__global__ void __launch_bounds__(kThreads)
    SelectLargest(TopLogitsArgs args, Strips<Selection> strips) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  __shared__ Selection selection;
  const int64_t row = blockIdx.y;
  const int count = args.params[row].num_top;
  TopLogit* const top = args.top + row * kMaxTopLogits;
  if (count == 0) {
    if (blockIdx.x == 0 && threadIdx.x < kMaxTopLogits) {
      top[threadIdx.x] = TopLogit();
    }
    return;
  }
  const float* const logits = args.slice.logits + row * args.slice.cols;
  const int64_t columns = OpenColumns(args.slice);
  const int64_t begin = blockIdx.x * kStripColumns + threadIdx.x;
  uint64_t values[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    const float logit = i < columns ? logits[i] : -INFINITY;
    values[k] =
        logit > -INFINITY ? Ranked(logit, args.slice.vocab_begin + i) : 0;
  }
  const auto own = [&](uint64_t below) {
    uint64_t largest = 0;
#pragma unroll
    for (const uint64_t value : values) {
      if (value < below) largest = max(largest, value);
    }
    return largest;
  };
  Select(count, own, &selection);
  if (!HandIn(strips, selection)) return;
  const Selection* const parts = strips.parts + row * gridDim.x;
  const int candidates = static_cast<int>(gridDim.x) * count;
  const auto handed_in = [&](uint64_t below) {
    uint64_t largest = 0;
    for (int c = threadIdx.x; c < candidates; c += kThreads) {
      const uint64_t value = parts[c / count].ranked[c % count];
      if (value < below) largest = max(largest, value);
    }
    return largest;
  };
  Select(count, handed_in, &selection);
  if (threadIdx.x < kMaxTopLogits) {
    top[threadIdx.x] = TopLogitOf(selection.ranked[threadIdx.x]);
  }
}

__global__ void __launch_bounds__(kThreads)
    MergeSelections(MergeTopLogitsArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  __shared__ Selection selection;
  const int64_t row = blockIdx.x;
  const RowStats stats = args.stats[row];
  const int count = IsBad(stats) ? 0 : args.params[row].num_top;
  const int candidates = args.ranks * count;
  const auto of_ranks = [&](uint64_t below) {
    uint64_t largest = 0;
    for (int c = threadIdx.x; c < candidates; c += kThreads) {
      const TopLogit part =
          args.parts[(c / count * args.rows + row) * kMaxTopLogits + c % count];
      const uint64_t value = part.id < 0 ? 0 : Ranked(part.value, part.id);
      if (value < below) largest = max(largest, value);
    }
    return largest;
  };
  Select(count, of_ranks, &selection);
  if (threadIdx.x >= kMaxTopLogits) return;
  TopLogit top = TopLogitOf(selection.ranked[threadIdx.x]);
  if (top.id >= 0) {
    top.value =
        static_cast<float>(double{top.value} - stats.max - log(stats.sum_exp));
  }
  args.top[row * kMaxTopLogits + threadIdx.x] = top;
}

}  // namespace

void TopLogits(const TopLogitsArgs& args, Stream* stream) {
  if (args.slice.rows == 0) return;
  const dim3 grid = StripGrid(args.slice, kStripColumns);
  LaunchDependent(SelectLargest, grid, kThreads, 0, stream, args,
                  MakeStrips<Selection>(grid, stream));
}

void MergeTopLogits(const MergeTopLogitsArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  LaunchDependent(MergeSelections, Blocks(args.rows, 1), kThreads, 0, stream,
                  args);
}

}  // namespace ring::cuda
