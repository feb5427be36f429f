// Linear attention with a fixed decay per head, everything between the QKV
// and gate projections and the output projection.
// Source: "Every Attention Matters", arXiv 2510.19338, eq. 2 to 4.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/step_rows.h"

namespace ring {

class ThreadPool;

// For every row t of every segment, per head with rate s:
//   q, k, v = silu(q), silu(k), silu(v)                   only if silu is set
//   q, k = rope(rms(q, q_norm)), rope(rms(k, k_norm))
//   S = exp(-s) S + outer(k_t, v_t)                       fp32 [D_k, D_v]
//   o_t = D^-0.5 (q_t S)
// then over all heads of the row
//   out = o / rms(o within its norm group) * g_norm * sigmoid(gate)
// Prompt segments may use the chunked form; both forms are exact. The state is
// read from slot state_in (zero if -1) and written to slot state_out.
struct LightningAttentionArgs {
  const void* qkv = nullptr;   // [rows, 3 * H * D]: Q heads | K heads | V heads
  const void* gate = nullptr;  // [rows, H * D]
  DType qkv_dtype = DType::kFloat32;  // of qkv and gate
  int64_t rows = 0;
  int num_heads = 0;  // H, of this rank
  int head_dim = 0;   // D
  bool silu = false;

  const float* q_norm = nullptr;  // [D], null: no q/k norm
  const float* k_norm = nullptr;  // [D]
  float eps = 0;                  // of q/k norm and group norm
  RopeRows rope;
  const float* decay_rates = nullptr;  // [H], s > 0, slice of the global table

  StepSegments segments;
  float* states = nullptr;  // [slots, H, D, D] fp32, this layer's pool

  const float* g_norm = nullptr;  // [H * D], this rank's slice
  // Norm groups that lie on this rank as a whole: each has
  // H * D / groups channels. 0: this rank holds a part of one group; then the
  // division by the RMS is left out and the row's sum of squares is returned
  // in sum_of_squares, to be applied where the ranks' parts are added.
  int groups = 1;
  float* sum_of_squares = nullptr;  // [rows], written only if groups is 0

  void* out = nullptr;  // [rows, H * D]; padding rows are left as they are
  DType out_dtype = DType::kFloat32;
  float* workspace = nullptr;  // [LightningWorkspaceFloats] fp32
};

// A GPU works on pieces of this many rows of a prompt segment side by side:
// shorter ones where few heads leave it idle, since every piece costs a state.
inline constexpr int LightningBlockRows(int num_heads) {
  return num_heads > 8 ? 1024 : 512;
}

// Size of `workspace` for steps of up to max_rows rows.
int64_t LightningWorkspaceFloats(int64_t max_rows, int num_heads, int head_dim);

namespace cpu {
void LightningAttention(const LightningAttentionArgs& args, ThreadPool* pool);
}
namespace cuda {
class Stream;
void LightningAttention(const LightningAttentionArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
