// Made-up weights for any config: the same model on every mesh, activations
// that stay finite, tokens that spread over the experts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "parallel/progress.h"
#include "worker/model/load_plan.h"
#include "worker/model/load_tasks.h"

namespace ring {

// Writes the elements of `source` of `tensor` into `out`, rows packed, in the
// tensor's dtype (bf16 or fp32). An element depends on the tensor's name, its
// place in the whole tensor and `seed` only: Philox4x32 keyed by name and seed
// gives 16 bits per element, and the sum of their two bytes is the draw, a
// triangular distribution of
//   norms:            mean 1, standard deviation 0.1
//   expert_bias:      mean 0, 0.001: one of 0.02 makes the rows of an expert
//                     vary by half, as sigmoids are flat where experts are
//                     taken
//   word_embeddings:  mean 0, 1
//   router:           mean 0, 1.5 / sqrt(inputs), so that scores differ
//   other matrices:   mean 0, 1 / sqrt(inputs), which keeps the variance
void MakeUpTensor(const TensorInfo& tensor, const SliceSource& source,
                  uint64_t seed, std::byte* out);

// Fills `memory` (plan.memory_bytes()) with made-up slices of the plan, on
// options.threads threads.
void MakeUpSlices(const LoadPlan& plan, uint64_t seed,
                  const LoadOptions& options, std::byte* memory);

// The same elements, made by the ops of `backend`, whose memory `memory` is.
// Done on return; `progress`, which may be null, ticks after each piece.
// RESOURCE_EXHAUSTED if there is no room for staging.
absl::Status MakeUpSlicesOn(const LoadPlan& plan, uint64_t seed,
                            Backend* backend, std::byte* memory,
                            Progress* progress);

}  // namespace ring
