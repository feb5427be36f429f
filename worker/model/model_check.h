// `ring-worker --check`: is this folder a model that this mesh can serve?
#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/load_plan.h"
#include "worker/model_files/model_config.h"

namespace ring {

struct ModelCheck {
  // Lines for a person: every config field, the inventory, tokenizer and
  // template, bytes per rank, and a verdict.
  std::string report;
  // OK, or the first thing that is wrong.
  absl::Status status;
};

// Gives the spec of every rank of the world, in rank order.
using RanksOfWorld = absl::FunctionRef<absl::StatusOr<std::vector<ShardSpec>>(
    const ModelConfig& config)>;

// Reads config, headers and text files of `model_dir`, no tensor data: seconds
// for the largest checkpoints. Goes on after a problem as far as it can.
ModelCheck CheckModel(const std::string& model_dir, RanksOfWorld ranks);

}  // namespace ring
