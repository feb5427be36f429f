// Lightning attention with a gated, grouped output norm: all other layers.
#pragma once

#include "parallel/communicator.h"
#include "worker/model/model_weights.h"
#include "worker/model/step_context.h"

namespace ring {

// This rank's heads' part of  dense(g_norm(lightning(qkv(x))) * gate(x)).
// normed: [rows, hidden] activation dtype, rows of the whole group.
// partial: [rows, hidden] fp32, to be summed over the tp ranks with the
// returned scale: where a norm group spans ranks, its RMS is divided out there.
GroupScale LinearAttentionForward(const StepContext& step, int layer,
                                  const AttentionWeights& weights,
                                  const void* normed, float* partial);

}  // namespace ring
