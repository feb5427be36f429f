// `ring-worker --check`: is this folder a model that this mesh can serve?
#pragma once

#include <cstdint>
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
  // template, bytes per rank (read; held as weights, KV pages, state slots and
  // workspace), and a verdict.
  std::string report;
  // OK, or the first thing that is wrong.
  absl::Status status;
};

// What a rank takes of its memory: weights as its spec says, and the rest.
struct RankToCheck {
  ShardSpec shard;
  int64_t kv_page_bytes = 0;
  int64_t state_slot_bytes = 0;
  int64_t workspace_bytes = 0;
};

// Gives every rank of the world, in rank order.
using RanksOfWorld = absl::FunctionRef<absl::StatusOr<std::vector<RankToCheck>>(
    const ModelConfig& config)>;

// Judges tokenizer and chat template: lines for the report.
using TextCheck = absl::FunctionRef<absl::StatusOr<std::vector<std::string>>(
    const std::string& model_dir, const ModelConfig& config)>;

// Reads config, headers and text files of `model_dir`, no tensor data: seconds
// for the largest checkpoints. Goes on after a problem as far as it can.
ModelCheck CheckModel(const std::string& model_dir, TextCheck text,
                      RanksOfWorld ranks);

}  // namespace ring
