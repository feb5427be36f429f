// The whole model on one rank: embedding, layers, head.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/dtype.h"
#include "kernels/rope/rope.h"
#include "parallel/communicator.h"
#include "parallel/progress.h"
#include "worker/cache/cache_pool.h"
#include "worker/model/model_weights.h"
#include "worker/model/moe_layer.h"
#include "worker/model/residual_stream.h"
#include "worker/model/step_inputs.h"
#include "worker/model/workspace.h"
#include "worker/model_files/model_config.h"

namespace ring {

class ExpertPlacement;
class Mesh;

// Runs steps of a sharded model. Everything it is given outlives it. All ranks
// of the world call Forward with the same exchange and, for `replicated`, the
// same number of rows. Confined to the engine thread.
class HybridModel {
 public:
  struct Parts {
    const ModelConfig* config = nullptr;
    const ModelWeights* weights = nullptr;
    const Mesh* mesh = nullptr;
    const ExpertPlacement* placement = nullptr;
    Communicator* tp = nullptr;
    Communicator* dp = nullptr;
    Communicator* world = nullptr;
    Backend* backend = nullptr;
    CachePool* cache = nullptr;
    Progress* progress = nullptr;
  };
  struct Limits {
    int64_t max_rows = 0;
    int64_t max_samples = 0;
    DType activation_dtype = DType::kBFloat16;
  };

  // RESOURCE_EXHAUSTED if the activations do not fit the device.
  static absl::StatusOr<std::unique_ptr<HybridModel>> Create(
      const Parts& parts, const Limits& limits);

  // Runs the step's rows through all layers. Returns the logits of the sampled
  // rows over this rank's part of the vocabulary, [num_samples, local vocab]
  // fp32 on the device, valid until the next Forward.
  // last_tokens: [sequences] device.
  const float* Forward(const StepInputs& inputs, MoeExchange exchange,
                       const int32_t* last_tokens);

  // What the last Forward returned.
  const float* logits() const { return workspace_->logits; }

  // Called after every layer with the own rows of the residual stream, for
  // tests that compare hidden states. [own_rows.size(), hidden] device.
  using LayerObserver =
      std::function<void(int layer, const float* residual, Range own_rows)>;
  void set_layer_observer(LayerObserver observer) {
    observer_ = std::move(observer);
  }
  bool is_observed() const { return observer_ != nullptr; }

 private:
  HybridModel(const Parts& parts, const Limits& limits)
      : parts_(parts), limits_(limits) {}

  void Embed(const StepContext& step, const int32_t* last_tokens);
  void AttentionHalf(const StepContext& step, int layer);
  void MlpHalf(const StepContext& step, int layer, MoeExchange exchange);
  const float* Head(const StepContext& step);

  // Norm weight that follows the MLP half of `layer`.
  const float* NormAfter(int layer) const;

  const Parts parts_;
  const Limits limits_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<ResidualStream> stream_;
  std::unique_ptr<MoeRunner> moe_;
  std::unique_ptr<DeviceBuffer> rope_frequency_;  // [rotary_dim / 2] double
  double rope_gain_ = 1;
  LayerObserver observer_;
};

}  // namespace ring
