// `ring-worker --bench`: the engine alone, without coordinator and scheduler.
#pragma once

#include "absl/status/status.h"
#include "parallel/progress.h"
#include "worker/engine.h"
#include "worker/flags.h"
#include "worker/rank.h"

namespace ring {

// INVALID_ARGUMENT, with the flag and the limit, for a batch or a prompt that
// this engine could not hold: known before anything is loaded.
absl::Status CheckBench(const WorkerFlags& flags,
                        const Engine::Options& engine);

// REQUIRES: CheckBench. Times decode steps for each of flags.bench_batches
// sequences of flags.bench_context tokens, and prompts of flags.bench_prompts
// tokens; rank 0 prints one table. Collective: all ranks make the same plans by
// themselves. Caches start with random contents, so nothing has to be computed
// first.
absl::Status RunBench(const WorkerFlags& flags, Rank* rank, Progress* progress);

}  // namespace ring
