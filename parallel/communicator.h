// Collectives over device tensors, between the ranks of one mesh axis.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/base/dtype.h"
#include "parallel/range.h"

namespace ring {

// Consecutive rows of a [rows, cols] tensor.
using RowRange = Range;

// What ReduceRows needs when the partial sums come from a norm group that
// spans ranks (model: g_norm, then dense). Each rank then projects its slice
// without dividing by the group's RMS, and sends its sum of squares along; the
// division is applied here, per source rank, when the parts are added.
// Ranks r with equal r / ranks_per_group share a group.
struct GroupScale {
  const float* sum_of_squares = nullptr;  // [rows], of this rank's channels
  int ranks_per_group = 1;
  int64_t group_width = 0;  // channels of the whole group
  float eps = 0;
};

struct ReduceRowsArgs {
  // This rank's addend. [rows, cols], row-major, dtype bf16 or fp32.
  const void* partial = nullptr;
  DType partial_dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;

  // keep[r] says which rows rank r receives; one entry a rank, the same on all
  // ranks. Everybody keeping all rows is an all-reduce, disjoint slices are a
  // reduce-scatter, the rows of one's own group are what the replicated MoE
  // path needs.
  absl::Span<const RowRange> keep;

  // residual[i] += sum over ranks, in rank order, of partial[begin + i].
  // [keep[rank].size(), cols] fp32.
  float* residual = nullptr;

  // If norm_weight is set: normed = rms_norm(residual) * norm_weight,
  // rounded once to normed_dtype (bf16 or fp32). [keep[rank].size(), cols].
  const float* norm_weight = nullptr;  // [cols]
  float norm_eps = 0;
  void* normed = nullptr;
  DType normed_dtype = DType::kFloat32;

  GroupScale group_scale;  // unused when sum_of_squares is null
};

// One array of an AllToAll. send and recv may not overlap.
struct AllToAllRows {
  const void* send = nullptr;
  void* recv = nullptr;
  int64_t row_bytes = 0;
};

// A fixed set of ranks that run the same sequence of collectives. All calls
// work on the backend's main queue: on CPU they are done on return, on CUDA
// they are enqueued. Pointers are device pointers of the rank's backend.
//
// Every rank must make the same calls in the same order, never under a lock
// and never inside a branch that ranks may take differently. A rank that dies
// does not show up here as an error: its peers wait until the watchdog ends
// them. Confined to the engine thread.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // recv = the ranks' send buffers in rank order. `bytes` per rank, equal on
  // all ranks. recv may not overlap send, except that send may be the rank's
  // own place in recv.
  virtual void AllGather(const void* send, void* recv, int64_t bytes) = 0;

  // Sends send_rows[r] rows of every array to rank r; the blocks lie in rank
  // order without gaps, in send and in recv. recv_rows[r] must equal what r
  // sends here. Counts are host values; blocks may be empty. Several arrays in
  // one call cost little more than one.
  virtual void AllToAll(absl::Span<const AllToAllRows> arrays,
                        absl::Span<const int64_t> send_rows,
                        absl::Span<const int64_t> recv_rows) = 0;

  // Reduction, residual sum and RMS norm in one call; see ReduceRowsArgs. The
  // sum is always taken in rank order, so its bits do not depend on timing.
  virtual void ReduceRows(const ReduceRowsArgs& args) = 0;

  // Collective, the last call of a run without failure: ends the connections.
  // Without it they are left to the end of the process, as closing them would
  // wait for ranks that may be gone. DEADLINE_EXCEEDED when a rank does not
  // take part.
  virtual absl::Status Close() { return absl::OkStatus(); }
};

// A rank's communicators, one for each axis of the mesh (mesh.h).
struct MeshCommunicators {
  std::unique_ptr<Communicator> world;  // all ranks
  std::unique_ptr<Communicator> tp;     // this dp group, in order of tp_rank
  std::unique_ptr<Communicator> dp;     // equal tp_rank, in order of dp_rank

  // Closes all, in the same order on every rank.
  absl::Status Close() const;
};

}  // namespace ring
