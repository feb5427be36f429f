// `ring-worker --bench`: the engine alone, without coordinator and scheduler.
#pragma once

#include "absl/status/status.h"
#include "parallel/progress.h"
#include "worker/flags.h"
#include "worker/rank.h"

namespace ring {

// Times decode steps for each of flags.bench_batches sequences of
// flags.bench_context tokens, and prompts of flags.bench_prompts tokens; rank 0
// prints one table. Collective: all ranks make the same plans by themselves.
// Caches start with random contents, so nothing has to be computed first.
// INVALID_ARGUMENT names the limit that a batch or a prompt breaks.
absl::Status RunBench(const WorkerFlags& flags, Rank* rank,
                      Progress* progress);

}  // namespace ring
