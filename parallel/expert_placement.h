// Which rank owns which expert, or that all hold a slice of each.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ring {

// One table per layer. Every expert lives on one rank of the world, or a slice
// of it on every rank. A rank numbers its experts of a layer 0, 1, 2, … in
// rising order of their global id: the local index. It may own none. Immutable,
// thread-safe.
class ExpertPlacement {
 public:
  // Neighbouring experts on neighbouring ranks, the same for all layers; if
  // world_size does not divide num_experts the first ranks hold one more.
  static absl::StatusOr<ExpertPlacement> Contiguous(int num_layers,
                                                    int num_experts,
                                                    int world_size);

  // Every rank holds a slice of every expert: its local index is its global id.
  static absl::StatusOr<ExpertPlacement> Sliced(int num_layers, int num_experts,
                                                int world_size);

  // rank_of[layer][expert]. INVALID_ARGUMENT names the layer and the expert
  // whose rank is outside the world, or the layer of another length.
  static absl::StatusOr<ExpertPlacement> FromTable(
      const std::vector<std::vector<int>>& rank_of, int world_size);

  int num_layers() const { return static_cast<int>(layers_.size()); }
  int num_experts() const { return num_experts_; }
  int world_size() const { return world_size_; }
  bool sliced() const { return sliced_; }

  // REQUIRES: not sliced(). Index: of the expert among those of its owner.
  int RankOf(int layer, int expert) const;
  int LocalIndex(int layer, int expert) const;
  // Global ids of a rank's experts, by local index.
  absl::Span<const int> Owned(int layer, int rank) const;

  // [num_experts]: the expert's local index where `rank` holds it, else -1. The
  // table LocalExperts (kernels/elementwise) reads.
  std::vector<int32_t> ToLocal(int layer, int rank) const;

 private:
  struct Layer {
    std::vector<int> rank_of;             // [num_experts]
    std::vector<int> local_index;         // [num_experts]
    std::vector<std::vector<int>> owned;  // [world_size]
  };

  ExpertPlacement(int num_experts, int world_size)
      : num_experts_(num_experts), world_size_(world_size) {}

  int num_experts_;
  int world_size_;
  bool sliced_ = false;
  std::vector<Layer> layers_;
};

}  // namespace ring
