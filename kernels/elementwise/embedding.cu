// Row lookups. A block owns one row, its threads stride over the columns.
// Bound: memory, a row is read and written once.
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/elementwise/embedding.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void EmbedRows(EmbeddingArgs args) {
  const int64_t row = blockIdx.x;
  int64_t id = args.tokens[row];
  if (id < 0 && args.token_slots[row] >= 0) {
    id = args.last_tokens[args.token_slots[row]];
  }
  const int64_t local = id - args.vocab_begin;
  const bool held = id >= 0 && local >= 0 && local < args.table.rows;
  const int64_t cols = args.table.cols;
  const T* const from =
      static_cast<const T*>(args.table.data) + local * args.table.row_stride;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    args.out[row * cols + i] = held ? Widen(from[i]) : 0.0f;
  }
}

template <typename T>
__global__ void PickRows(GatherRowsArgs args) {
  const int64_t row = blockIdx.x;
  const int64_t source = args.index[row];
  const T* const from = static_cast<const T*>(args.x) + source * args.cols;
  T* const to = static_cast<T*>(args.out) + row * args.cols;
  for (int64_t i = threadIdx.x; i < args.cols; i += kThreads) {
    to[i] = source >= 0 ? from[i] : T();
  }
}

__global__ void MapExperts(LocalExpertsArgs args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= args.rows * args.top_k) return;
  const bool valid =
      args.row_valid == nullptr || args.row_valid[i / args.top_k] != 0;
  args.local[i] = valid ? args.to_local[args.experts[i]] : -1;
}

}  // namespace

void Embedding(const EmbeddingArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  WithFloatType(args.table.dtype, [&](auto type) {
    EmbedRows<decltype(type)>
        <<<Blocks(args.rows, 1), kThreads, 0, stream->get()>>>(args);
  });
  CheckLaunch("EmbedRows");
}

void GatherRows(const GatherRowsArgs& args, Stream* stream) {
  if (args.count == 0) return;
  WithFloatType(args.dtype, [&](auto type) {
    PickRows<decltype(type)>
        <<<Blocks(args.count, 1), kThreads, 0, stream->get()>>>(args);
  });
  CheckLaunch("PickRows");
}

void LocalExperts(const LocalExpertsArgs& args, Stream* stream) {
  const int64_t slots = args.rows * args.top_k;
  if (slots == 0) return;
  MapExperts<<<Blocks(slots, kThreads), kThreads, 0, stream->get()>>>(args);
  CheckLaunch("MapExperts");
}

}  // namespace ring::cuda
