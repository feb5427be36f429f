// Small random checkpoints in a temporary folder, for tests of everything that
// loads a model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace ring {

// config.json of a model with 7 layers in groups of 3, the last of which is a
// softmax tail; sizes that are no powers of two; 16 experts in 4 groups. tp 1,
// 2 and 4 fit. Tests change fields before they write it.
nlohmann::json TinyConfigJson();

struct TinyCheckpointOptions {
  uint64_t seed = 1;
  std::string matrix_dtype = "BF16";  // or "F32"
  std::string router_dtype = "F32";   // or "BF16"
  // Attention, dense MLP and experts as e4m3 with 128 x 128 scales; the
  // config then gets its quantization_config.
  bool block_fp8 = false;
  int shards = 2;  // 1: a single model.safetensors without index
};

// Writes on construction, removes the folder on destruction. Weights are
// normal: norms around 1, matrices of 1 / sqrt(inputs). The same seed and
// shape give the same values. Does not use the code under test.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(const nlohmann::json& config,
                          const TinyCheckpointOptions& options = {});
  ~TinyCheckpoint();
  TinyCheckpoint(const TinyCheckpoint&) = delete;
  TinyCheckpoint& operator=(const TinyCheckpoint&) = delete;

  const std::string& dir() const { return dir_; }

  struct Tensor {
    std::vector<int64_t> shape;
    // The values that the stored bits stand for: after rounding to the dtype,
    // for FP8 times the scale.
    std::vector<double> values;
  };
  // By name, scales not among them.
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

 private:
  std::string dir_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace ring
