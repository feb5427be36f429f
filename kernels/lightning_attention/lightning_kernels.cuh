// What the files of the lightning attention's kernels know of each other.
#pragma once

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/lightning_attention/lightning_attention.h"

namespace ring::cuda {

// Both write the states of their segments to their slots.
// Leaves the outputs in the workspace: group norm and gate are left to do.
void LightningDecodeSegments(const LightningAttentionArgs& args,
                             Stream* stream);
// True if the outputs are finished, false if they lie in the workspace.
bool LightningPromptSegments(const LightningAttentionArgs& args,
                             Stream* stream);

// As LightningPromptSegments, for heads of 128 and a bf16 result.
bool LightningPromptGroups(const LightningAttentionArgs& args, Stream* stream);
// Puts in the place of what every block of a cut segment adds (nothing for the
// last) the state at which it starts.
void StartBlockStates(const LightningAttentionArgs& args, int block_rows,
                      Stream* stream);

// Where the state of the block of rows that begins at `row` lies in the
// workspace, behind the outputs. Blocks of segments that have several begin at
// least block_rows apart, but the last of one segment and the first of the next
// may be closer.
__device__ inline float* BlockState(const LightningAttentionArgs& args,
                                    int block_rows, int64_t row,
                                    bool first_of_segment, int head) {
  const int64_t slot = row / block_rows * 2 + (first_of_segment ? 1 : 0);
  return args.workspace +
         (args.rows + (slot * args.head_dim)) * args.num_heads * args.head_dim +
         int64_t{head} * args.head_dim * args.head_dim;
}

}  // namespace ring::cuda
