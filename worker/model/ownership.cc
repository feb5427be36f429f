#include "worker/model/ownership.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

// Ranges along the sliced side of one tensor, from all ranks.
struct Cover {
  bool by_rows = true;
  bool by_cols = true;
  std::vector<TensorSlice> slices;
};

int LayerOf(absl::string_view name) {
  constexpr absl::string_view kPrefix = "model.layers.";
  int layer = -1;
  if (absl::StartsWith(name, kPrefix)) {
    const absl::string_view rest = name.substr(kPrefix.size());
    if (!absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer)) return -1;
  }
  return layer;
}

// How many ranks should hold row `row` of a tensor. The rules of the header,
// stated apart from the code that makes the plans.
int64_t ExpectedCopies(const ModelConfig& config, absl::string_view name,
                       int64_t row, const ShardSpec& spec, int64_t world) {
  const int64_t groups = world / spec.tp;
  if (absl::StrContains(name, ".mlp.experts.")) {
    return spec.slice_experts ? groups : 1;
  }
  if (absl::EndsWith(name, "layernorm.weight") || name == "model.norm.weight" ||
      absl::StrContains(name, ".mlp.gate.") ||
      absl::StrContains(name, ".shared_experts.")) {
    return world;
  }
  if (absl::EndsWith(name, ".query_key_value.weight") &&
      config.IsSoftmaxLayer(LayerOf(name)) && row >= config.query_size()) {
    return groups * std::max(1, spec.tp / config.num_key_value_heads);
  }
  return groups;
}

absl::Status CheckTensor(const ModelConfig& config,
                         const ExpectedTensor& expected, const Cover& cover,
                         const ShardSpec& spec, int64_t world) {
  if (!cover.by_rows && !cover.by_cols) {
    return absl::InternalError(
        absl::StrCat(expected.name, " is sliced both by rows and by columns"));
  }
  const bool matrix = expected.shape.size() == 2;
  const bool by_rows = cover.by_rows && matrix;
  const int64_t size = by_rows ? expected.shape[0] : expected.shape.back();
  // Where the number of holders changes, and by how much.
  std::map<int64_t, int64_t> changes;
  changes[0] += 0;
  changes[size] += 0;
  // Key and value rows of softmax layers have their own count.
  if (by_rows && config.query_size() < size) changes[config.query_size()] += 0;
  for (const TensorSlice& slice : cover.slices) {
    const SliceRange& range = by_rows ? slice.rows : slice.cols;
    ++changes[range.begin];
    --changes[range.end];
  }
  int64_t copies = 0;
  for (const auto& [place, change] : changes) {
    copies += change;
    const int64_t wanted =
        place >= size ? 0
                      : ExpectedCopies(config, expected.name,
                                       by_rows ? place : 0, spec, world);
    if (copies == wanted) continue;
    return absl::InternalError(absl::StrCat(
        expected.name, ": ", by_rows ? "row " : "column ", place, " of ", size,
        " is held by ", copies, " ranks instead of ", wanted));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckOwnership(const ModelConfig& config,
                            const TensorTable& tensors,
                            absl::Span<const LoadPlan> ranks) {
  absl::flat_hash_map<const TensorInfo*, Cover> covers;
  for (const LoadPlan& plan : ranks) {
    for (const TensorSlice& slice : plan.slices()) {
      const std::vector<int64_t>& shape = slice.tensor->shape;
      Cover& cover = covers[slice.tensor];
      cover.by_rows &= slice.cols == SliceRange{0, shape.back()};
      cover.by_cols &=
          shape.size() == 1 || slice.rows == SliceRange{0, shape.front()};
      cover.slices.push_back(slice);
    }
  }
  const int64_t world = static_cast<int64_t>(ranks.size());
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    const absl::Status status =
        CheckTensor(config, expected, covers[tensors.Find(expected.name)],
                    ranks.front().spec(), world);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace ring
