#include "parallel/host_communicator.h"

#include <cstring>
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

// To a cache line, so that addends may be read with aligned vectors.
int64_t AlignUp(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceBuffer>> HostCommunicator::AllocateParts(
    const Options& options, int size) {
  if (size == 1) return options.backend->Allocate(0);
  const int64_t values = options.max_reduce_rows * size;
  return options.backend->Allocate(AlignUp(values * kFloatBytes) +
                                   values * options.max_reduce_cols *
                                       kFloatBytes);
}

HostCommunicator::HostCommunicator(const Options& options,
                                   std::unique_ptr<DeviceBuffer> parts)
    : backend_(options.backend),
      progress_(options.progress),
      parts_(std::move(parts)) {}

void HostCommunicator::AllGather(const void* send, void* recv, int64_t bytes) {
  CollectiveScope scope(progress_);
  if (size() == 1) {
    // The only collective that a device without a communicator of its own
    // needs: it may not wait, and the host may not see the memory.
    if (send != recv) backend_->Copy(recv, send, bytes);
    return;
  }
  for (int r = 0; r < size(); ++r) {
    Receive(r, At(recv, r * bytes), bytes);
    Send(r, send, bytes);
  }
  Flush();
}

void HostCommunicator::AllToAll(const void* send,
                                absl::Span<const int64_t> send_bytes,
                                void* recv,
                                absl::Span<const int64_t> recv_bytes) {
  RING_CHECK_EQ(static_cast<int>(send_bytes.size()), size());
  RING_CHECK_EQ(static_cast<int>(recv_bytes.size()), size());
  CollectiveScope scope(progress_);
  int64_t send_offset = 0;
  int64_t recv_offset = 0;
  for (int r = 0; r < size(); ++r) {
    Receive(r, At(recv, recv_offset), recv_bytes[r]);
    Send(r, At(send, send_offset), send_bytes[r]);
    recv_offset += recv_bytes[r];
    send_offset += send_bytes[r];
  }
  Flush();
}

void HostCommunicator::ExchangeCounts(absl::Span<const int64_t> counts,
                                      absl::Span<int64_t> counts_out) {
  RING_CHECK_EQ(static_cast<int>(counts.size()), size());
  RING_CHECK_EQ(static_cast<int>(counts_out.size()), size());
  CollectiveScope scope(progress_);
  for (int r = 0; r < size(); ++r) {
    Receive(r, &counts_out[r], sizeof(int64_t));
    Send(r, &counts[r], sizeof(int64_t));
  }
  Flush();
}

void HostCommunicator::ReduceRows(const ReduceRowsArgs& args) {
  RING_CHECK_EQ(static_cast<int>(args.keep.size()), size());
  CollectiveScope scope(progress_);
  const int64_t row_bytes =
      args.cols * static_cast<int64_t>(SizeOf(args.partial_dtype));
  const RowRange mine = args.keep[rank()];
  const float* squares = args.group_scale.sum_of_squares;

  ResidualNormArgs sum;
  sum.parts_dtype = args.partial_dtype;
  sum.num_parts = size();
  sum.part_stride = mine.size() * args.cols;
  sum.rows = mine.size();
  sum.cols = args.cols;
  sum.residual = args.residual;
  sum.norm_weight = args.norm_weight;
  sum.eps = args.norm_eps;
  sum.normed = args.normed;
  sum.normed_dtype = args.normed_dtype;
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
    const int64_t parts_offset = AlignUp(squares_bytes * size());
    RING_CHECK_LE(parts_offset + part_bytes * size(), parts_->bytes())
        << "for " << mine.size() << " rows of " << args.cols;
    std::byte* const all_squares = At(parts_->data(), 0);
    std::byte* const all_parts = At(parts_->data(), parts_offset);
    for (int r = 0; r < size(); ++r) {
      const RowRange& theirs = args.keep[r];
      Receive(r, At(all_parts, r * part_bytes), part_bytes);
      Send(r, At(args.partial, theirs.begin * row_bytes),
           theirs.size() * row_bytes);
      if (squares != nullptr) {
        Receive(r, At(all_squares, r * squares_bytes), squares_bytes);
        Send(r, squares + theirs.begin, theirs.size() * kFloatBytes);
      }
    }
    Flush();
    sum.parts = all_parts;
    if (squares != nullptr) {
      sum.sum_of_squares = reinterpret_cast<const float*>(all_squares);
    }
  }
  if (mine.size() > 0) backend_->ResidualNorm(sum);
}

void HostCommunicator::Send(int to, const void* data, int64_t bytes) {
  if (bytes > 0) sends_.push_back({to, data, bytes});
}

void HostCommunicator::Receive(int from, void* data, int64_t bytes) {
  if (bytes > 0) recvs_.push_back({from, data, bytes});
}

void HostCommunicator::Flush() {
  // What stays on this rank is copied here: the k-th block sent to oneself
  // meets the k-th block received from oneself.
  size_t kept_recvs = 0;
  size_t kept_sends = 0;
  size_t next_send = 0;
  for (const RecvBlock& recv : recvs_) {
    if (recv.from != rank()) {
      recvs_[kept_recvs++] = recv;
      continue;
    }
    while (next_send < sends_.size() && sends_[next_send].to != rank()) {
      ++next_send;
    }
    RING_CHECK_LT(next_send, sends_.size());
    const SendBlock& send = sends_[next_send++];
    RING_CHECK_EQ(send.bytes, recv.bytes);
    if (send.data != recv.data) {
      std::memcpy(recv.data, send.data, recv.bytes);
    }
  }
  recvs_.resize(kept_recvs);
  for (const SendBlock& send : sends_) {
    if (send.to != rank()) sends_[kept_sends++] = send;
  }
  sends_.resize(kept_sends);
  if (size() > 1) Exchange(sends_, recvs_);
  sends_.clear();
  recvs_.clear();
}

}  // namespace ring
