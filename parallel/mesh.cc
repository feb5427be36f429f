#include "parallel/mesh.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

absl::Status CheckDivides(int tp, int64_t size, const char* what) {
  if (size % tp == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tp=", tp, " does not divide ", size, " ", what));
}

// `count` things are sliced over tp, or sets of tp / count ranks share one.
absl::Status CheckDividesEitherWay(int tp, int count, const char* what) {
  if (count == 0 || count % tp == 0 || tp % count == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tp=", tp, " neither divides ",
                                                 count, " ", what,
                                                 " nor is a multiple of it"));
}

// The things, of `count` over `tp` ranks, that a rank holds a part of.
Range SharedSlice(int64_t count, int tp, int tp_rank) {
  if (count == 0) return {};
  if (count < tp) {
    const int64_t index = tp_rank / (tp / count);
    return {index, index + 1};
  }
  const int64_t chunk = count / tp;
  return {tp_rank * chunk, (tp_rank + 1) * chunk};
}

// Chunks of ceil(size / parts); the last ones may be short or empty.
Range CeilSlice(int64_t size, int parts, int index) {
  const int64_t chunk = (size + parts - 1) / parts;
  return {std::min(index * chunk, size), std::min((index + 1) * chunk, size)};
}

}  // namespace

absl::StatusOr<Mesh> Mesh::Create(const MeshConfig& config) {
  const int tp = config.tp;
  if (tp < 1 || config.dp < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tp=", tp, " and dp=", config.dp, " must both be at least 1"));
  }
  if (int64_t{tp} * config.dp != config.world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tp=", tp, " x dp=", config.dp, " needs ", int64_t{tp} * config.dp,
        " ranks, but ", config.world_size, " were started"));
  }
  if (config.rank < 0 || config.rank >= config.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", config.rank, " is outside a world of ",
                     config.world_size, " ranks"));
  }
  RING_RETURN_IF_ERROR(
      CheckDivides(tp, config.num_attention_heads, "query heads"));
  RING_RETURN_IF_ERROR(
      CheckDividesEitherWay(tp, config.num_key_value_heads, "KV heads"));
  RING_RETURN_IF_ERROR(
      CheckDividesEitherWay(tp, config.group_norm_size, "norm groups"));
  RING_RETURN_IF_ERROR(
      CheckDivides(tp, config.intermediate_size, "channels of the dense MLP"));
  RING_RETURN_IF_ERROR(CheckDivides(tp, config.shared_expert_size,
                                    "channels of the shared expert"));
  return Mesh(config);
}

Range Mesh::heads() const {
  return SharedSlice(config_.num_attention_heads, tp(), tp_rank());
}

Range Mesh::kv_heads() const {
  return SharedSlice(config_.num_key_value_heads, tp(), tp_rank());
}

Range Mesh::norm_groups() const {
  return SharedSlice(config_.group_norm_size, tp(), tp_rank());
}

int Mesh::ranks_per_norm_group() const {
  const int groups = config_.group_norm_size;
  return groups == 0 || groups >= tp() ? 1 : tp() / groups;
}

Range Mesh::vocab(int tp_rank) const {
  return CeilSlice(config_.vocab_size, tp(), tp_rank);
}

Range Mesh::InnerSlice(int64_t size) const {
  RING_CHECK_EQ(size % tp(), 0) << "for an inner size of " << size;
  const int64_t chunk = size / tp();
  return {tp_rank() * chunk, (tp_rank() + 1) * chunk};
}

Range Mesh::RowSlice(int64_t rows, int tp_rank) const {
  return CeilSlice(rows, tp(), tp_rank);
}

}  // namespace ring
