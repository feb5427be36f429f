#include "parallel/expert_placement.h"

#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

absl::Status CheckSizes(int num_layers, int num_experts, int world_size) {
  if (num_layers >= 0 && num_experts >= 0 && world_size >= 1) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cannot place ", num_experts, " experts of ", num_layers,
                   " layers on ", world_size, " ranks"));
}

}  // namespace

absl::StatusOr<ExpertPlacement> ExpertPlacement::Contiguous(int num_layers,
                                                            int num_experts,
                                                            int world_size) {
  RING_RETURN_IF_ERROR(CheckSizes(num_layers, num_experts, world_size));
  const int share = num_experts / world_size;
  const int longer = num_experts % world_size;  // ranks that hold one more
  std::vector<int> rank_of;
  rank_of.reserve(num_experts);
  for (int rank = 0; rank < world_size; ++rank) {
    rank_of.insert(rank_of.end(), share + (rank < longer ? 1 : 0), rank);
  }
  return FromTable(std::vector<std::vector<int>>(num_layers, rank_of),
                   world_size);
}

absl::StatusOr<ExpertPlacement> ExpertPlacement::Sliced(int num_layers,
                                                        int num_experts,
                                                        int world_size) {
  RING_RETURN_IF_ERROR(CheckSizes(num_layers, num_experts, world_size));
  ExpertPlacement placement(num_experts, world_size);
  placement.sliced_ = true;
  std::vector<int> all(num_experts);
  std::iota(all.begin(), all.end(), 0);
  Layer layer;
  layer.owned.assign(world_size, all);
  placement.layers_.assign(num_layers, layer);
  return placement;
}

absl::StatusOr<ExpertPlacement> ExpertPlacement::FromTable(
    const std::vector<std::vector<int>>& rank_of, int world_size) {
  const size_t num_experts = rank_of.empty() ? 0 : rank_of[0].size();
  ExpertPlacement placement(static_cast<int>(num_experts), world_size);
  for (size_t l = 0; l < rank_of.size(); ++l) {
    if (rank_of[l].size() != num_experts) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expert placement of layer ", l, " has ", rank_of[l].size(),
          " experts, layer 0 has ", num_experts));
    }
    Layer layer;
    layer.rank_of = rank_of[l];
    layer.owned.resize(world_size);
    for (size_t e = 0; e < num_experts; ++e) {
      const int rank = rank_of[l][e];
      if (rank < 0 || rank >= world_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("expert placement puts expert ", e, " of layer ", l,
                         " on rank ", rank, " of a world of ", world_size));
      }
      layer.local_index.push_back(static_cast<int>(layer.owned[rank].size()));
      layer.owned[rank].push_back(static_cast<int>(e));
    }
    placement.layers_.push_back(std::move(layer));
  }
  return placement;
}

int ExpertPlacement::RankOf(int layer, int expert) const {
  RING_CHECK(!sliced_);
  return layers_[layer].rank_of[expert];
}

int ExpertPlacement::LocalIndex(int layer, int expert) const {
  RING_CHECK(!sliced_);
  return layers_[layer].local_index[expert];
}

absl::Span<const int> ExpertPlacement::Owned(int layer, int rank) const {
  return layers_[layer].owned[rank];
}

std::vector<int32_t> ExpertPlacement::ToLocal(int layer, int rank) const {
  std::vector<int32_t> to_local(num_experts_, -1);
  const std::vector<int>& owned = layers_[layer].owned[rank];
  for (size_t i = 0; i < owned.size(); ++i) {
    to_local[owned[i]] = static_cast<int32_t>(i);
  }
  return to_local;
}

}  // namespace ring
