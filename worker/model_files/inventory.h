// Which tensors a model of a given config consists of, and whether a
// checkpoint has exactly these.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model_files/model_config.h"
#include "worker/model_files/tensor_table.h"

namespace ring {

// One tensor of the model. Stored as bf16 or fp32; a block-FP8 checkpoint may
// store a quantizable one as F8_E4M3 instead, with a companion
// <name>_scale_inv, fp32 of [ceil(rows / 128), ceil(cols / 128)].
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool quantizable = false;
};

// Suffix of the companion's name; its values multiply, despite the name.
inline constexpr char kScaleSuffix[] = "_scale_inv";

// All tensors of the model, layer by layer, without the next-token layers and
// without scales. 24,217 for Ring-flash-linear-2.0.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// The model's tensors as they lie in no file: bf16, router and expert bias
// fp32. For weights that are made up.
TensorTable UnstoredTensors(const ModelConfig& config);

struct Inventory {
  int64_t tensors = 0;     // expected and found, scales not counted
  int64_t parameters = 0;  // elements of these
  int64_t bytes = 0;       // of these, with scales
  int64_t scales = 0;      // tensors
  // model.layers.{num_hidden_layers ...}: present, not run.
  int64_t next_token_tensors = 0;
  int64_t next_token_bytes = 0;
  // Names that every loader of the family passes over.
  int64_t skipped_tensors = 0;
};

// Compares `tensors` with ExpectedTensors(config). INVALID_ARGUMENT lists the
// first problems by name (missing, unexpected, wrong shape, wrong dtype) and
// says how many more there are.
absl::StatusOr<Inventory> CheckInventory(const ModelConfig& config,
                                         const TensorTable& tensors);

}  // namespace ring
