#include "worker/rank.h"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/backend_factory.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "kernels/debug_backend.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/communicator_factory.h"
#include "worker/model_files/checkpoint.h"
#include "worker/shard_of_mesh.h"

namespace ring {
namespace {

constexpr uint64_t kDummySeed = 1;

// "cuda" is the GPU with the rank's number among those of its host.
absl::StatusOr<std::string> DeviceOf(const WorkerFlags& flags,
                                     const MpiRuntime& mpi) {
  if (flags.device == "cuda") return absl::StrCat("cuda:", mpi.local_rank());
  if (absl::StartsWith(flags.device, "cuda:") && mpi.local_size() > 1 &&
      !flags.share_gpu) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--device ", flags.device, " puts the ", mpi.local_size(),
        " ranks of this host on one GPU: use --device cuda, which gives every "
        "rank its own, or --share-gpu to insist"));
  }
  return flags.device;
}

absl::StatusOr<WeightShard> LoadWeights(const WorkerFlags& flags,
                                        const ModelConfig& config,
                                        const ShardSpec& spec, bool on_gpu,
                                        int threads, Backend* backend,
                                        Progress* progress) {
  if (flags.load == "dummy") {
    return on_gpu ? WeightShard::MakeUpOn(config, spec, kDummySeed, backend,
                                          progress)
                  : WeightShard::MakeUp(config, spec, kDummySeed, threads,
                                        progress);
  }
  RING_ASSIGN_OR_RETURN(const Checkpoint checkpoint,
                        Checkpoint::Open(flags.model));
  return on_gpu
             ? WeightShard::LoadOn(config, checkpoint, spec, threads, backend,
                                   progress)
             : WeightShard::Load(config, checkpoint, spec, threads, progress);
}

}  // namespace

WeightFormat WeightFormatOf(const WorkerFlags& flags) {
  return flags.weights == "fp8" ? WeightFormat::kBlockFp8
                                : WeightFormat::kAsStored;
}

DecayMode DecayModeOf(const WorkerFlags& flags) {
  return flags.decay == "index_m1" ? DecayMode::kIndexM1 : DecayMode::kIndex;
}

absl::StatusOr<std::unique_ptr<Rank>> Rank::Create(const WorkerFlags& flags,
                                                   MpiRuntime* mpi,
                                                   Progress* progress,
                                                   FailureHandler on_failure) {
  std::unique_ptr<Rank> rank(new Rank);
  RING_ASSIGN_OR_RETURN(ModelConfigFile file, ReadModelConfig(flags.model));
  rank->config_ = std::move(file.config);
  const ModelConfig& config = rank->config_;
  RING_ASSIGN_OR_RETURN(rank->mesh_, MakeMesh(config, mpi->size(), mpi->rank(),
                                              flags.tp, flags.dp));
  const Mesh& mesh = *rank->mesh_;
  RING_ASSIGN_OR_RETURN(
      rank->placement_,
      ExpertPlacement::Contiguous(config.num_hidden_layers, config.num_experts,
                                  mesh.world_size()));
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = flags.threads > 0
                          ? flags.threads
                          : std::max(1, cores / mpi->local_size());
  RING_ASSIGN_OR_RETURN(const std::string device, DeviceOf(flags, *mpi));
  RING_ASSIGN_OR_RETURN(rank->backend_, MakeBackend(device, threads));
  if (flags.debug_sync) {
    rank->backend_ = MakeDebugBackend(std::move(rank->backend_), &progress->op);
  }
  Backend* const backend = rank->backend_.get();
  rank->on_gpu_ = device != "cpu";
  LogInfo("rank starts", "host", mpi->host_name(), "backend",
          backend->description(), "tp_rank", mesh.tp_rank(), "tp", mesh.tp(),
          "dp_rank", mesh.dp_rank(), "dp", mesh.dp());

  progress->phase = Progress::Phase::kLoading;
  ShardSpec spec = MakeShardSpec(config, mesh, *rank->placement_);
  spec.decay_mode = DecayModeOf(flags);
  spec.format = WeightFormatOf(flags);
  RING_ASSIGN_OR_RETURN(rank->weights_,
                        LoadWeights(flags, config, spec, rank->on_gpu_, threads,
                                    backend, progress));

  const DType activations =
      flags.activations == "fp32" ? DType::kFloat32 : DType::kBFloat16;
  rank->max_context_ =
      flags.max_context > 0
          ? std::min(flags.max_context, config.max_position_embeddings)
          : config.max_position_embeddings;
  rank->num_pages_ = static_cast<int>(flags.kv_tokens / kPageTokens);

  CommunicatorOptions communicators;
  communicators.collectives = {backend, progress, flags.max_batch_tokens,
                               config.hidden_size};
  communicators.share_gpu = flags.share_gpu;
  communicators.on_failure = std::move(on_failure);
  RING_ASSIGN_OR_RETURN(rank->communicators_,
                        MakeCommunicators(mpi, mesh, communicators));
  Engine::Parts parts;
  parts.config = &config;
  parts.weights = &rank->weights_->weights();
  parts.mesh = &mesh;
  parts.placement = &*rank->placement_;
  parts.tp = rank->communicators_.tp.get();
  parts.dp = rank->communicators_.dp.get();
  parts.world = rank->communicators_.world.get();
  parts.backend = backend;
  parts.progress = progress;
  RING_ASSIGN_OR_RETURN(
      rank->engine_,
      Engine::Create(parts, {.max_sequences = flags.max_sequences,
                             .num_pages = rank->num_pages_,
                             .max_batch_tokens = flags.max_batch_tokens,
                             .max_context = rank->max_context_,
                             .activation_dtype = activations,
                             .kv_dtype = activations}));
  LogInfo("rank ready", "weight_bytes", rank->weights_->bytes());
  // The leader joins the coordinator when the whole group can serve.
  std::vector<std::string> unused;
  RING_RETURN_IF_ERROR(mpi->control()->Gather("ready", &unused));
  return rank;
}

}  // namespace ring
