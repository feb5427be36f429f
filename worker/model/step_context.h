// What the layers of one forward pass share.
#pragma once

#include "kernels/backend.h"
#include "kernels/base/dtype.h"
#include "kernels/step_rows.h"
#include "worker/cache/cache_pool.h"
#include "worker/model/step_inputs.h"
#include "worker/model/workspace.h"
#include "worker/model_files/model_config.h"

namespace ring {

class Mesh;

// Borrowed for the duration of a step; every member outlives it.
struct StepContext {
  const ModelConfig& config;
  const Mesh& mesh;
  Backend& backend;
  const CachePool& cache;
  const Workspace& workspace;
  const StepInputs& inputs;
  DType activation_dtype;
  RopeRows rope;  // of all rows of the step
};

}  // namespace ring
