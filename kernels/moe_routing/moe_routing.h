// The router of a MoE layer: biased, group-limited sigmoid top-k.
// Source: the vendor's modeling code; fp32 throughout.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

class ThreadPool;

// Per row, if norm_weight is set: x' = x / sqrt(mean(x^2) + eps) * norm_weight
// in fp32 without rounding, else x' = x. A router that reads rounded rows
// picks other experts where two are nearly equal, so the model passes the
// residual stream. Then p = sigmoid(x' W^T) in fp32; c = p + expert_bias
// chooses; the topk_group groups with the largest sum of their two largest c
// stay open; the top_k experts with the largest c among them are taken, in
// falling order of c; w = p of those, divided by their sum + 1e-20 if
// norm_topk_prob, times routed_scaling_factor. Equal values go to the lower
// index, of groups and of experts.
struct MoeRoutingArgs {
  const void* x = nullptr;  // [rows, hidden] bf16 or fp32
  DType x_dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t decode_rows = 0;             // as in LinearArgs, for x W^T
  const float* norm_weight = nullptr;  // [hidden]; x is fp32 then
  float eps = 0;
  float* normed = nullptr;  // [rows, hidden] scratch if norm_weight is set
  WeightMatrix router;      // [num_experts, hidden] fp32 or bf16
  const float* expert_bias = nullptr;  // [num_experts], null: no bias
  int num_experts = 0;
  int n_group = 1;
  int topk_group = 1;
  int top_k = 1;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;

  float* logits = nullptr;     // [rows, num_experts] scratch, router output
  int32_t* experts = nullptr;  // [rows, top_k]
  float* weights = nullptr;    // [rows, top_k]

  // If set, what LocalExperts would make of `experts` with these is written
  // too: this rank's index of each expert, -1 for experts elsewhere and
  // padding.
  int32_t* local = nullptr;            // [rows, top_k]
  const int32_t* to_local = nullptr;   // [num_experts]
  const int32_t* row_valid = nullptr;  // [rows] 0: padding. Null: all valid
};

namespace cpu {
void MoeRouting(const MoeRoutingArgs& args, ThreadPool* pool);
}
namespace cuda {
class Stream;
void MoeRouting(const MoeRoutingArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
