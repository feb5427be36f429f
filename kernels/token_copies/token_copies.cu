// Planning: a block owns one rank and walks the rows in strips of one row a
// thread; a row's place among the rank's copies is the number of rows before
// it that go there too: within its warp from a ballot, then over the warps of
// the strip, then over the strips. Packing and adding: a block owns one row,
// finds its copies, then its threads stride over the columns.
// Shared memory: 128 bytes for planning, 8 bytes a rank for the others.
// Bound: memory. Packing reads a row once and writes each copy once; adding
// reads each part once.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/token_copies/token_copies.h"

namespace ring::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kPlanWarps = kPlanThreads / kWarp;
constexpr int kRowThreads = 256;
constexpr int kMaxRanks = 4096;  // what fits 32 KiB of shared memory

__global__ void NumberCopies(PlanCopiesArgs args) {
  __shared__ int goes_of_warp[kPlanWarps];
  const int rank = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int64_t before_strip = 0;
  for (int64_t begin = 0; begin < args.rows; begin += kPlanThreads) {
    const int64_t row = begin + threadIdx.x;
    bool goes = false;
    for (int j = 0; row < args.rows && j < args.top_k && !goes; ++j) {
      goes = args.rank_of[args.experts[row * args.top_k + j]] == rank;
    }
    const unsigned ballot = __ballot_sync(kAllLanes, goes);
    if (lane == 0) goes_of_warp[warp] = __popc(ballot);
    __syncthreads();
    int before_warp = 0;
    int in_strip = 0;
    for (int w = 0; w < kPlanWarps; ++w) {
      if (w < warp) before_warp += goes_of_warp[w];
      in_strip += goes_of_warp[w];
    }
    if (row < args.rows) {
      const int before_lane = __popc(ballot & ((1u << lane) - 1));
      args.copy_of[row * args.num_ranks + rank] =
          goes ? static_cast<int32_t>(before_strip + before_warp + before_lane)
               : -1;
    }
    before_strip += in_strip;
    __syncthreads();
  }
  if (threadIdx.x == 0) args.counts[rank] = before_strip;
}

// Called by the whole block: fills `copies` with the number of the row's copy
// for each rank, -1 where there is none.
__device__ void FindCopies(const int64_t* counts, const int32_t* copy_of,
                           int64_t row, int num_ranks, int64_t* copies) {
  for (int rank = threadIdx.x; rank < num_ranks; rank += blockDim.x) {
    const int32_t index = copy_of[row * num_ranks + rank];
    int64_t first_copy = 0;
    for (int r = 0; r < rank; ++r) first_copy += counts[r];
    copies[rank] = index < 0 ? -1 : first_copy + index;
  }
  __syncthreads();
}

// Unit: what a thread moves at a time; row_bytes is a multiple of its size.
template <typename Unit>
__global__ void CopyRows(PackCopiesArgs args) {
  extern __shared__ int64_t copies[];  // [num_ranks]
  const int64_t row = blockIdx.x;
  FindCopies(args.counts, args.copy_of, row, args.num_ranks, copies);
  const int64_t units = args.row_bytes / static_cast<int64_t>(sizeof(Unit));
  const Unit* const from = static_cast<const Unit*>(args.x) + row * units;
  Unit* const to = static_cast<Unit*>(args.packed_x);
  for (int64_t i = threadIdx.x; i < units; i += kRowThreads) {
    const Unit value = from[i];
    for (int rank = 0; rank < args.num_ranks; ++rank) {
      if (copies[rank] >= 0) to[copies[rank] * units + i] = value;
    }
  }
  const int top_k = args.top_k;
  for (int i = threadIdx.x; i < args.num_ranks * top_k; i += kRowThreads) {
    const int rank = i / top_k;
    if (copies[rank] < 0) continue;
    const int64_t slot = row * top_k + i % top_k;
    const int64_t packed = copies[rank] * top_k + i % top_k;
    const int32_t expert = args.experts[slot];
    args.packed_experts[packed] =
        args.rank_of[expert] == rank ? args.local_index[expert] : -1;
    args.packed_weights[packed] = args.weights[slot];
  }
}

__global__ void AddParts(AddCopiesArgs args) {
  extern __shared__ int64_t copies[];  // [num_ranks]
  const int64_t row = blockIdx.x;
  FindCopies(args.counts, args.copy_of, row, args.num_ranks, copies);
  for (int64_t i = threadIdx.x; i < args.cols; i += kRowThreads) {
    float sum = args.out[row * args.cols + i];
    for (int rank = 0; rank < args.num_ranks; ++rank) {
      if (copies[rank] >= 0) sum += args.parts[copies[rank] * args.cols + i];
    }
    args.out[row * args.cols + i] = sum;
  }
}

bool IsAligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

size_t SharedBytes(int num_ranks) {
  RING_CHECK_LE(num_ranks, kMaxRanks);
  return num_ranks * sizeof(int64_t);
}

}  // namespace

void PlanCopies(const PlanCopiesArgs& args, Stream* stream) {
  NumberCopies<<<args.num_ranks, kPlanThreads, 0, stream->get()>>>(args);
  CheckLaunch("NumberCopies");
}

void PackCopies(const PackCopiesArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  const size_t shared = SharedBytes(args.num_ranks);
  const unsigned blocks = Blocks(args.rows, 1);
  if (args.row_bytes % sizeof(uint4) == 0 && IsAligned(args.x, sizeof(uint4)) &&
      IsAligned(args.packed_x, sizeof(uint4))) {
    CopyRows<uint4><<<blocks, kRowThreads, shared, stream->get()>>>(args);
  } else {
    CopyRows<char><<<blocks, kRowThreads, shared, stream->get()>>>(args);
  }
  CheckLaunch("CopyRows");
}

void AddCopies(const AddCopiesArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  AddParts<<<Blocks(args.rows, 1), kRowThreads, SharedBytes(args.num_ranks),
             stream->get()>>>(args);
  CheckLaunch("AddParts");
}

}  // namespace ring::cuda
