#include "parallel/block_communicator.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/norm/residual_norm.h"

namespace ring {
namespace {

const std::byte* At(const void* base, int64_t offset) {
  return static_cast<const std::byte*>(base) + offset;
}
std::byte* At(void* base, int64_t offset) {
  return static_cast<std::byte*>(base) + offset;
}

constexpr int64_t kFloatBytes = sizeof(float);

// A cache line, so that addends may be read with aligned vectors.
constexpr int64_t kAlignment = 64;
int64_t AlignUp(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What one row of a ReduceRows needs: all ranks' addends, and their sums of
// squares.
int64_t BytesOfSums(int size, int64_t cols) {
  return size * (cols + 1) * kFloatBytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceBuffer>> BlockCommunicator::AllocateParts(
    const Options& options, int size) {
  if (size == 1) return options.backend->Allocate(0);
  const int64_t row_bytes = BytesOfSums(size, options.max_reduce_cols);
  // At least one row.
  return options.backend->Allocate(
      kAlignment +
      std::max(row_bytes, std::min(options.max_parts_bytes,
                                   options.max_reduce_rows * row_bytes)));
}

BlockCommunicator::BlockCommunicator(const Options& options,
                                     std::unique_ptr<DeviceBuffer> parts)
    : backend_(options.backend),
      progress_(options.progress),
      parts_(std::move(parts)) {}

void BlockCommunicator::AllGather(const void* send, void* recv, int64_t bytes) {
  CollectiveScope scope(progress_);
  if (AllGatherDirectly(send, recv, bytes)) return;
  for (int r = 0; r < size(); ++r) {
    Move(r, send, bytes, At(recv, r * bytes), bytes);
  }
  Flush("AllGather");
}

void BlockCommunicator::AllToAll(absl::Span<const AllToAllRows> arrays,
                                 absl::Span<const int64_t> send_rows,
                                 absl::Span<const int64_t> recv_rows) {
  RING_CHECK_EQ(static_cast<int>(send_rows.size()), size());
  RING_CHECK_EQ(static_cast<int>(recv_rows.size()), size());
  CollectiveScope scope(progress_);
  int64_t sent = 0;
  int64_t received = 0;
  for (int r = 0; r < size(); ++r) {
    for (const AllToAllRows& array : arrays) {
      Move(r, At(array.send, sent * array.row_bytes),
           send_rows[r] * array.row_bytes,
           At(array.recv, received * array.row_bytes),
           recv_rows[r] * array.row_bytes);
    }
    sent += send_rows[r];
    received += recv_rows[r];
  }
  Flush("AllToAll");
}

void BlockCommunicator::ReduceRows(const ReduceRowsArgs& args) {
  RING_CHECK_EQ(static_cast<int>(args.keep.size()), size());
  CollectiveScope scope(progress_);
  if (ReduceRowsDirectly(args)) return;
  int64_t most = 0;
  for (const RowRange& keep : args.keep) most = std::max(most, keep.size());
  int64_t rows_per_round = most;
  if (size() > 1) {
    rows_per_round =
        (parts_->bytes() - kAlignment) / BytesOfSums(size(), args.cols);
    RING_CHECK_GT(rows_per_round, 0) << "for rows of " << args.cols;
  }
  for (int64_t begin = 0; begin < most; begin += rows_per_round) {
    ReduceSome(args, begin, rows_per_round);
  }
}

void BlockCommunicator::ReduceSome(const ReduceRowsArgs& args, int64_t begin,
                                   int64_t count) {
  const auto some = [&](const RowRange& keep) {
    return RowRange{std::min(keep.begin + begin, keep.end),
                    std::min(keep.begin + begin + count, keep.end)};
  };
  const int64_t row_bytes =
      args.cols * static_cast<int64_t>(SizeOf(args.partial_dtype));
  const RowRange mine = some(args.keep[rank()]);
  const float* squares = args.group_scale.sum_of_squares;
  // Within the rows that this rank keeps.
  const int64_t first = mine.begin - args.keep[rank()].begin;

  ResidualNormArgs sum;
  sum.parts_dtype = args.partial_dtype;
  sum.num_parts = size();
  sum.part_stride = mine.size() * args.cols;
  sum.rows = mine.size();
  sum.cols = args.cols;
  sum.residual = args.residual + first * args.cols;
  sum.norm_weight = args.norm_weight;
  sum.eps = args.norm_eps;
  sum.normed_dtype = args.normed_dtype;
  if (args.norm_weight != nullptr) {
    sum.normed =
        At(args.normed,
           first * args.cols * static_cast<int64_t>(SizeOf(args.normed_dtype)));
  }
  sum.parts_per_group = args.group_scale.ranks_per_group;
  sum.group_width = args.group_scale.group_width;
  sum.group_eps = args.group_scale.eps;

  if (size() == 1) {
    sum.parts = At(args.partial, mine.begin * row_bytes);
    if (squares != nullptr) sum.sum_of_squares = squares + mine.begin;
  } else {
    // The sums of squares of all ranks lie first, then their addends.
    const int64_t part_bytes = mine.size() * row_bytes;
    const int64_t squares_bytes =
        squares == nullptr ? 0 : mine.size() * kFloatBytes;
    std::byte* const all_squares = At(parts_->data(), 0);
    std::byte* const all_parts =
        At(parts_->data(), AlignUp(squares_bytes * size()));
    for (int r = 0; r < size(); ++r) {
      const RowRange theirs = some(args.keep[r]);
      Move(r, At(args.partial, theirs.begin * row_bytes),
           theirs.size() * row_bytes, At(all_parts, r * part_bytes),
           part_bytes);
      if (squares == nullptr) continue;
      Move(r, squares + theirs.begin, theirs.size() * kFloatBytes,
           At(all_squares, r * squares_bytes), squares_bytes);
    }
    Flush("ReduceRows");
    sum.parts = all_parts;
    if (squares != nullptr) {
      sum.sum_of_squares = reinterpret_cast<const float*>(all_squares);
    }
  }
  if (mine.size() > 0) backend_->ResidualNorm(sum);
}

void BlockCommunicator::Move(int peer, const void* send, int64_t send_bytes,
                             void* recv, int64_t recv_bytes) {
  if (peer == rank()) {
    RING_CHECK_EQ(send_bytes, recv_bytes);
    if (send == recv) return;
  }
  if (send_bytes > 0) sends_.push_back({peer, send, send_bytes});
  if (recv_bytes > 0) recvs_.push_back({peer, recv, recv_bytes});
}

void BlockCommunicator::Flush(const char* collective) {
  if (size() > 1) {
    Exchange(collective, sends_, recvs_);
  } else {
    for (size_t i = 0; i < sends_.size(); ++i) {
      backend_->Copy(recvs_[i].data, sends_[i].data, sends_[i].bytes);
    }
  }
  sends_.clear();
  recvs_.clear();
}

}  // namespace ring
