// What the files of the lightning attention's kernels know of each other.
#pragma once

#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_attention.h"

namespace ring::cuda {

// Both write the states of their segments to their slots and leave the outputs
// in the workspace: group norm and gate are left to do.
void LightningDecodeSegments(const LightningAttentionArgs& args,
                             Stream* stream);
void LightningPromptSegments(const LightningAttentionArgs& args,
                             Stream* stream);

}  // namespace ring::cuda
