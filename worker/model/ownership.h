// That the shards of a world make up the model: nothing forgotten, nothing
// held more often than designed.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "worker/model/load_plan.h"
#include "worker/model_files/model_config.h"
#include "worker/model_files/tensor_table.h"

namespace ring {

// Counts for every row (or column) of every tensor how many ranks hold it:
//   norms, router, expert bias, shared experts       every rank
//   embedding, head, attention, dense MLP            one per dp group
//   key and value rows of softmax layers             the same, or tp / KV heads
//                                                    where tp is larger
//   a routed expert                                  one rank; where experts
//                                                    are sliced, one per group
// `ranks` are the plans of the whole world in rank order, made from `config`
// and `tensors`. INTERNAL names the tensor, the place and both counts.
absl::Status CheckOwnership(const ModelConfig& config,
                            const TensorTable& tensors,
                            absl::Span<const LoadPlan> ranks);

}  // namespace ring
