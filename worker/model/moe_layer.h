// The mixture-of-experts half of a layer, over both exchange paths.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"
#include "parallel/token_exchange.h"
#include "worker/model/model_weights.h"
#include "worker/model/residual_stream.h"
#include "worker/model/step_context.h"

namespace ring {

class ExpertPlacement;

// How rows meet their experts in one step; the plan decides.
enum class MoeExchange {
  // Every rank sees every row and runs its own experts on it.
  kReplicated,
  // Each rank routes its own rows, which then travel: to the ranks that own
  // their experts or, where experts are sliced, to all ranks.
  kAllToAll,
};

// Runs the MoE half of any layer. Owns what the layers share: the exchange's
// buffers and the tables from global to local expert ids. All ranks of the
// world make the same calls, those without rows included. Confined to the
// engine thread.
class MoeRunner {
 public:
  struct Communicators {
    Communicator* world = nullptr;
    Communicator* dp = nullptr;  // ranks of equal tp_rank, one per group
  };

  static absl::StatusOr<std::unique_ptr<MoeRunner>> Create(
      const ModelConfig& config, const Mesh& mesh,
      const ExpertPlacement& placement, const Communicators& communicators,
      int64_t max_rows, DType activation_dtype, Backend* backend);

  // stream += experts(normed) + shared expert(normed). norm_weight is the one
  // that made `normed`; next_norm, the next half layer's, is applied to the
  // sum. [hidden] each.
  void Forward(const StepContext& step, int layer, const MoeWeights& weights,
               MoeExchange exchange, const float* norm_weight,
               const float* next_norm, ResidualStream* stream);

 private:
  MoeRunner(const Mesh& mesh, const Communicators& communicators)
      : mesh_(mesh), communicators_(communicators) {}

  void Replicated(const StepContext& step, int layer, const MoeWeights& weights,
                  const float* norm_weight, const float* next_norm,
                  ResidualStream* stream);
  void AllToAll(const StepContext& step, int layer, const MoeWeights& weights,
                const float* norm_weight, const float* next_norm,
                ResidualStream* stream);
  void Gathered(const StepContext& step, const MoeWeights& weights,
                const float* norm_weight, const float* next_norm,
                ResidualStream* stream);

  const Mesh& mesh_;
  const Communicators communicators_;
  std::unique_ptr<TokenExchange> exchange_;  // null: experts are sliced
  // [layer] -> [num_experts] index among this rank's experts, or -1.
  std::vector<std::unique_ptr<DeviceBuffer>> to_local_;
  std::vector<Range> keep_;  // [world]
};

}  // namespace ring
