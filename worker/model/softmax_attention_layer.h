// Softmax attention with grouped KV heads: every layer_group_size-th layer.
#pragma once

#include "worker/model/model_weights.h"
#include "worker/model/step_context.h"

namespace ring {

// This rank's heads' part of  dense(attention(qkv(x))).
// normed: [rows, hidden] activation dtype, rows of the whole group.
// partial: [rows, hidden] fp32, to be summed over the tp ranks.
void SoftmaxAttentionForward(const StepContext& step, int layer,
                             const AttentionWeights& weights,
                             const void* normed, float* partial);

}  // namespace ring
