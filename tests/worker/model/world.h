// Specs of all ranks of a world, as the worker makes them.
#pragma once

#include <vector>

#include "worker/model/load_plan.h"
#include "worker/model_files/model_config.h"

namespace ring {

// Rank d * tp + t is tp_rank t of group d; neighbouring experts lie on
// neighbouring ranks or, sliced, all on every rank.
inline std::vector<ShardSpec> SpecsOfWorld(const ModelConfig& config, int tp,
                                           int dp, bool slice_experts = false) {
  const int world = tp * dp;
  std::vector<ShardSpec> specs;
  for (int rank = 0; rank < world; ++rank) {
    ShardSpec spec;
    spec.tp = tp;
    spec.tp_rank = rank % tp;
    spec.slice_experts = slice_experts;
    spec.experts.resize(config.num_hidden_layers);
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      if (config.IsDenseLayer(layer)) continue;
      for (int expert = 0; expert < config.num_experts; ++expert) {
        if (slice_experts ||
            int64_t{expert} * world / config.num_experts == rank) {
          spec.experts[layer].push_back(expert);
        }
      }
    }
    specs.push_back(spec);
  }
  return specs;
}

}  // namespace ring
