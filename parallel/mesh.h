// Which slice of the model and of a step's rows each rank holds.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "parallel/range.h"

namespace ring {

// Model sizes carry their Hugging Face names. A size of 0 means that the model
// has no such part; nothing is checked for it then.
struct MeshConfig {
  int world_size = 1;
  int rank = 0;
  int tp = 1;
  int dp = 1;

  int num_attention_heads = 0;
  int num_key_value_heads = 0;  // of softmax layers
  int group_norm_size = 0;      // NUMBER of g_norm groups of linear layers
  int64_t vocab_size = 0;
  int64_t intermediate_size = 0;   // of dense MLP layers
  int64_t shared_expert_size = 0;  // moe_intermediate_size x shared experts
};

// A world of dp x tp ranks: rank = dp_rank * tp + tp_rank. The tp ranks of one
// data-parallel group hold slices of attention, dense MLP, embedding and head;
// the dp groups hold different sequences. Experts are placed over the whole
// world (expert_placement.h).
//
//   8 ranks, tp = 4, dp = 2:   group 0: ranks 0 1 2 3    group 1: ranks 4 5 6 7
//   tp axis of rank 6: 4 5 6 7         dp axis of rank 6: 2 6
//
// Pure arithmetic. Immutable, copyable, thread-safe.
class Mesh {
 public:
  // INVALID_ARGUMENT says which number does not fit which: "tp=3 does not
  // divide 32 query heads". tp must divide the query heads and the inner sizes,
  // and divide or be divided by the KV heads and by the norm groups.
  static absl::StatusOr<Mesh> Create(const MeshConfig& config);

  int world_size() const { return config_.world_size; }
  int rank() const { return config_.rank; }
  int tp() const { return config_.tp; }
  int dp() const { return config_.dp; }
  int tp_rank() const { return config_.rank % config_.tp; }
  int dp_rank() const { return config_.rank / config_.tp; }
  bool is_leader() const { return config_.rank == 0; }
  int RankOf(int dp_rank, int tp_rank) const {
    return dp_rank * config_.tp + tp_rank;
  }

  // Query heads of this rank; all heads of linear layers are sliced the same.
  Range heads() const;

  // KV heads of this rank: those that its query heads read. With fewer KV heads
  // than ranks, tp / num_key_value_heads neighbours hold the same one.
  Range kv_heads() const;

  // Norm groups that this rank's channels belong to. With fewer groups than
  // ranks, ranks_per_norm_group() neighbours share one, and exchange their sums
  // of squares (GroupScale in communicator.h); otherwise it is 1.
  Range norm_groups() const;
  int ranks_per_norm_group() const;

  // Rows of the embedding and of the head: chunks of ceil(vocab_size / tp), so
  // the last ones may be short or empty.
  Range vocab() const { return vocab(tp_rank()); }
  Range vocab(int tp_rank) const;

  // This rank's part of an inner size that tp divides.
  Range InnerSlice(int64_t size) const;

  // The slices of a reduce-scatter over tp: ceil(rows / tp) rows each, of which
  // the last ones may be short or empty. A later AllGather of as many rows from
  // each rank brings row i to place i.
  Range RowSlice(int64_t rows, int tp_rank) const;

 private:
  explicit Mesh(const MeshConfig& config) : config_(config) {}

  MeshConfig config_;
};

}  // namespace ring
