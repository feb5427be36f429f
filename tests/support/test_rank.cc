#include "tests/support/test_rank.h"

#include <utility>

#include "kernels/backend_factory.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "worker/model_files/checkpoint.h"
#include "worker/shard_of_mesh.h"

namespace ring {

namespace {

absl::StatusOr<WeightShard> MakeShard(const MiniGroup::Options& options,
                                      const ModelConfig& config,
                                      const ShardSpec& spec, Backend* backend) {
  const bool on_host = options.device == "cpu" && !options.load_on_backend;
  if (options.dummy_weights) {
    constexpr uint64_t kSeed = 1;
    return on_host ? WeightShard::MakeUp(config, spec, kSeed, options.threads)
                   : WeightShard::MakeUpOn(config, spec, kSeed, backend);
  }
  RING_ASSIGN_OR_RETURN(const Checkpoint checkpoint,
                        Checkpoint::Open(options.model_dir));
  return on_host ? WeightShard::Load(config, checkpoint, spec, 1)
                 : WeightShard::LoadOn(config, checkpoint, spec, 2, backend);
}

}  // namespace

absl::Status BuildTestRank(const MiniGroup::Options& options,
                           const ModelConfig& config, int number,
                           const ConnectRank& connect, TestRank* rank) {
  RING_ASSIGN_OR_RETURN(Mesh mesh, MakeMesh(config, options.tp * options.dp,
                                            number, options.tp, options.dp));
  rank->mesh = std::make_unique<Mesh>(mesh);
  RING_ASSIGN_OR_RETURN(ExpertPlacement placement,
                        PlaceExperts(config, mesh, options.sliced_experts));
  rank->placement = std::make_unique<ExpertPlacement>(std::move(placement));
  RING_ASSIGN_OR_RETURN(rank->backend,
                        MakeBackend(options.device, options.threads));
  if (options.wrap_backend) {
    rank->backend = options.wrap_backend(std::move(rank->backend));
  }
  ShardSpec spec = MakeShardSpec(config, *rank->mesh, *rank->placement);
  spec.decay_mode = options.decay_mode;
  spec.format = options.format;
  RING_ASSIGN_OR_RETURN(WeightShard shard,
                        MakeShard(options, config, spec, rank->backend.get()));
  rank->weights = std::make_unique<WeightShard>(std::move(shard));

  BlockCommunicator::Options communicator;
  communicator.backend = rank->backend.get();
  communicator.progress = &rank->progress;
  communicator.max_reduce_rows = options.max_batch_tokens;
  communicator.max_reduce_cols = config.hidden_size;
  RING_ASSIGN_OR_RETURN(rank->communicators,
                        connect(*rank->mesh, communicator));

  Engine::Parts parts;
  parts.config = &config;
  parts.weights = &rank->weights->weights();
  parts.mesh = rank->mesh.get();
  parts.placement = rank->placement.get();
  parts.tp = rank->communicators.tp.get();
  parts.dp = rank->communicators.dp.get();
  parts.world = rank->communicators.world.get();
  parts.backend = rank->backend.get();
  parts.progress = &rank->progress;
  Engine::Options engine;
  engine.max_sequences = options.max_sequences;
  engine.num_pages = static_cast<int>(options.kv_tokens / kPageTokens);
  engine.max_batch_tokens = options.max_batch_tokens;
  engine.max_context = options.max_context;
  engine.activation_dtype = options.activation_dtype;
  engine.kv_dtype = options.activation_dtype;
  engine.deterministic = options.deterministic;
  RING_ASSIGN_OR_RETURN(rank->engine, Engine::Create(parts, engine));
  if (options.on_ready) {
    options.on_ready(number, *rank->mesh, rank->engine.get());
  }
  return absl::OkStatus();
}

Scheduler::Options SchedulingOf(const MiniGroup::Options& options) {
  Scheduler::Options scheduling;
  scheduling.data_parallel = options.dp;
  scheduling.tensor_parallel = options.tp;
  scheduling.cache = {options.max_sequences,
                      static_cast<int>(options.kv_tokens / kPageTokens)};
  scheduling.max_batch_tokens = options.max_batch_tokens;
  scheduling.max_context = options.max_context;
  scheduling.max_queued = options.max_queued;
  scheduling.exchange = options.exchange;
  scheduling.replicated_rows =
      options.deterministic ? 0 : options.replicated_rows;
  scheduling.pad_decode_rows = options.pad_decode_rows;
  scheduling.prompt_cut = options.prompt_cut;
  return scheduling;
}

}  // namespace ring
