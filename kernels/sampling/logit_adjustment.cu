// Adjusting: block (strip, row) owns 4,096 columns of a row and holds them in
// 16 KB of shared memory: load, barrier, the threads walk the sequence's list
// and add what falls into the strip, barrier, penalise and store. Bound:
// memory, logits and occurrences read once and the adjusted logits written;
// 1,152 entries of 8 bytes a block come from the L2 cache.
//
// Counting: a thread per token; integer atomics, so their order does not
// matter.
#include "kernels/cuda_stream.cuh"
#include "kernels/sampling/logit_adjustment.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 16;  // columns of a strip for one thread
constexpr int kStripColumns = kThreads * kEach;

__global__ void __launch_bounds__(kThreads) AdjustStrip(AdjustLogitsArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  __shared__ float strip[kStripColumns];
  const LogitAdjustment row = args.adjustments[blockIdx.y];
  const int64_t cols = args.slice.cols;
  const int64_t begin = int64_t{blockIdx.x} * kStripColumns;
  const int64_t columns = min(cols - begin, int64_t{kStripColumns});
  const int64_t row_begin = int64_t{blockIdx.y} * cols + begin;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i < columns) strip[i] = args.slice.logits[row_begin + i];
  }
  if (row.sequence >= 0 && row.num_edits > 0) {
    __syncthreads();
    const LogitEdit* const edits =
        args.edits + int64_t{row.sequence} * kMaxLogitEdits;
    const int64_t first_id = args.slice.vocab_begin + begin;
    for (int e = threadIdx.x; e < row.num_edits; e += kThreads) {
      const int64_t i = edits[e].id - first_id;
      if (i >= 0 && i < columns) atomicAdd(strip + i, edits[e].bias);
    }
    __syncthreads();
  }
  const bool counts = row.sequence >= 0 && UsesCounts(row);
  const Occurrences* const occurrences =
      args.occurrences + row.sequence * cols + begin;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i >= columns) continue;
    float logit = strip[i];
    if (counts) {
      const Occurrences seen = occurrences[i];
      if (seen != 0) logit = PenalizedLogit(row, seen, logit);
    }
    args.adjusted[row_begin + i] = logit;
  }
}

__global__ void CountEach(CountTokensArgs args) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= args.count) return;
  const int32_t token = args.tokens[i];
  const int32_t sequence = args.sequences[i];
  const int64_t column = int64_t{token} - args.vocab_begin;
  if (token < 0 || sequence < 0 || column < 0 || column >= args.cols) return;
  Occurrences* const seen = args.occurrences + sequence * args.cols + column;
  if (args.prompt) {
    atomicOr(seen, kInPrompt);
  } else {
    atomicAdd(seen, 1u);
  }
}

}  // namespace

void AdjustLogits(const AdjustLogitsArgs& args, Stream* stream) {
  if (args.slice.rows == 0 || args.slice.cols == 0) return;
  const dim3 grid(Blocks(args.slice.cols, kStripColumns),
                  Blocks(args.slice.rows, 1));
  LaunchDependent(AdjustStrip, grid, kThreads, 0, stream, args);
}

void CountTokens(const CountTokensArgs& args, Stream* stream) {
  if (args.count == 0) return;
  LaunchDependent(CountEach, Blocks(args.count, kThreads), kThreads, 0, stream,
                  args);
}

}  // namespace ring::cuda
