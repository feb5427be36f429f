// What an engine takes of its device's memory, known before it takes it.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "parallel/expert_placement.h"
#include "parallel/mesh.h"
#include "worker/engine.h"
#include "worker/model_files/model_config.h"

namespace ring {

// Of one rank, besides its weights.
struct EngineBytes {
  int64_t kv_pages = 0;     // follows --kv-tokens
  int64_t state_slots = 0;  // follows --max-sequences
  int64_t workspace = 0;    // all else; follows --max-batch-tokens most

  int64_t total() const { return kv_pages + state_slots + workspace; }
};

// Makes the engine on a device that only counts, so the numbers are those of
// Engine::Create and of the communicators' own buffers, whatever they become.
EngineBytes MeasureEngine(const ModelConfig& config, const Mesh& mesh,
                          const ExpertPlacement& placement,
                          const Engine::Options& options);

}  // namespace ring
