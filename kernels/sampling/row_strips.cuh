// How the sampling kernels share the columns of a row: cut into strips, each of
// a block, which meet in scratch memory.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/sampling/sampling.h"

namespace ring::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kThreadWarps = kThreads / kWarp;
inline constexpr int kEach = 16;  // columns of a strip for one thread
inline constexpr int64_t kStripColumns = kThreads * kEach;

// Where the blocks of a row meet. Block (strip, row) of gridDim.x strips.
template <typename T>
struct Strips {
  T* parts;            // [rows, strips]
  unsigned* counters;  // [rows], zero
};

// Hands in the block's part (of thread 0) of its row; true in the block that is
// the last one to do so, which then reads the others'.
template <typename T>
__device__ inline bool HandIn(const Strips<T>& strips, const T& part) {
  __shared__ bool last;
  const int64_t row = blockIdx.y;
  if (threadIdx.x == 0) {
    strips.parts[row * gridDim.x + blockIdx.x] = part;
    __threadfence();
    last = atomicAdd(strips.counters + row, 1u) == gridDim.x - 1;
    if (last) strips.counters[row] = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

template <typename T>
__device__ inline T ShuffleDown(const T& value, int offset) {
  constexpr int kWords = sizeof(T) / sizeof(uint32_t);
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  uint32_t words[kWords];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) {
    word = __shfl_down_sync(kAllLanes, word, offset);
  }
  T other;
  memcpy(&other, words, sizeof(T));
  return other;
}

// Folds what the threads hold into one value, in all threads, in an order that
// is always the same: merge(a, b), b of a higher thread. Called by the whole
// block; its memory is free again after the next barrier.
template <typename T, typename Merge>
__device__ inline T FoldBlock(T mine, Merge merge) {
  // Raw, since shared memory takes no objects that have to be constructed.
  __shared__ __align__(16) unsigned char memory[kThreadWarps * sizeof(T)];
  T* const shared = reinterpret_cast<T*>(memory);
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    mine = merge(mine, ShuffleDown(mine, offset));
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = mine;
  __syncthreads();
  T all = shared[0];
#pragma unroll
  for (int w = 1; w < kThreadWarps; ++w) all = merge(all, shared[w]);
  return all;
}

// A logit and its column or id as one number, so that the largest number is the
// largest logit and of equal ones the first: the key, then the complement of
// `at`. 0: none.
__device__ inline uint64_t Ranked(float logit, int64_t at) {
  return uint64_t{OrderedKey(logit)} << 32 | (~static_cast<uint32_t>(at));
}

// Strips of a row, of which there is always one, times rows.
inline dim3 StripGrid(const LogitsSlice& slice, int64_t columns) {
  RING_CHECK_LE(slice.rows, Stream::kNumCounters);
  return dim3(std::max(1u, Blocks(slice.cols, columns)), Blocks(slice.rows, 1));
}

template <typename T>
Strips<T> MakeStrips(const dim3& grid, Stream* stream) {
  return {stream->Scratch<T>(int64_t{grid.x} * grid.y), stream->counters()};
}

}  // namespace ring::cuda
