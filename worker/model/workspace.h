// Every intermediate tensor of a step, on one page. Allocated once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/dtype.h"
#include "worker/model_files/model_config.h"

namespace ring {

class Mesh;

// R = rows of one group's step, W = rows that a MoE layer can see on this
// rank (the gathered rows of all groups, or all rows that other ranks send),
// S = sampled rows. `act` is the activation dtype, the rest is fp32 or int32.
// Tensors that are never live together may share memory.
struct Workspace {
  struct Limits {
    int64_t max_rows = 0;      // R
    int64_t max_samples = 0;   // S
    int64_t expert_inner = 0;  // of a routed expert on this rank
    DType activation_dtype = DType::kBFloat16;
  };

  static absl::StatusOr<std::unique_ptr<Workspace>> Create(
      const ModelConfig& config, const Mesh& mesh, const Limits& limits,
      Backend* backend);

  float* rope_cos = nullptr;  // [R, rotary_dim / 2]
  float* rope_sin = nullptr;  // [R, rotary_dim / 2]

  float* partial = nullptr;  // [W, hidden] a half layer's result to be summed

  float* qkv = nullptr;             // [R, local QKV rows of the widest layer]
  float* gate = nullptr;            // [R, heads * D]
  void* attention = nullptr;        // [R, heads * D] act, input of `dense`
  float* sum_of_squares = nullptr;  // [R] where a norm group spans ranks
  float* lightning = nullptr;       // scratch of the lightning op

  void* moe_rows = nullptr;          // [W, hidden] act, rows of all groups
  float* router_input = nullptr;     // [R, hidden] normed without rounding
  float* router_logits = nullptr;    // [R, num_experts]
  int32_t* own_experts = nullptr;    // [R, top_k] global ids of own rows
  float* own_weights = nullptr;      // [R, top_k]
  int32_t* experts = nullptr;        // [W, top_k] global ids
  int32_t* local_experts = nullptr;  // [W, top_k] this rank's, or -1
  float* expert_weights = nullptr;   // [W, top_k]
  float* own_result = nullptr;       // [R, hidden] experts' sum of own rows
  void* ffn = nullptr;               // scratch of the FFN ops

  void* sampled_rows = nullptr;  // [S, hidden] act
  float* logits = nullptr;       // [S, local vocabulary]

  // Largest number of rows a MoE layer sees on a rank.
  int64_t max_moe_rows = 0;  // W

 private:
  Workspace() = default;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

}  // namespace ring
