#include "worker/rank.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/backend_factory.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "kernels/debug_backend.h"
#include "parallel/communicator_factory.h"
#include "worker/model/load_plan.h"
#include "worker/model_files/inventory.h"

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

// Opens what the weights will come from, and says how much they will take.
absl::Status PlanWeights(const WorkerFlags& flags, Rank::Parts* parts) {
  const ModelConfig& config = parts->config;
  ShardSpec shard = parts->plan.shard;
  if (flags.load == "dummy") {
    RING_ASSIGN_OR_RETURN(parts->weight_bytes,
                          WeightShard::MadeUpBytes(config, std::move(shard)));
    return absl::OkStatus();
  }
  RING_ASSIGN_OR_RETURN(parts->checkpoint, Checkpoint::Open(flags.model));
  const TensorTable& tensors = parts->checkpoint->tensors();
  RING_RETURN_IF_ERROR(CheckInventory(config, tensors).status());
  RING_ASSIGN_OR_RETURN(const LoadPlan plan,
                        LoadPlan::Create(config, tensors, std::move(shard)));
  parts->weight_bytes = plan.memory_bytes();
  return absl::OkStatus();
}

// A disk and the page cache are faster with several, whatever the cores.
constexpr int kFewestReadsInFlight = 4;

absl::StatusOr<WeightShard> LoadWeights(const Rank::Parts& parts,
                                        Progress* progress) {
  const ModelConfig& config = parts.config;
  const ShardSpec& spec = parts.plan.shard;
  Backend* const backend = parts.backend.get();
  if (!parts.checkpoint.has_value()) {
    return parts.on_gpu ? WeightShard::MakeUpOn(config, spec, kDummySeed,
                                                backend, progress)
                        : WeightShard::MakeUp(config, spec, kDummySeed,
                                              parts.threads, progress);
  }
  const int reads = std::max(parts.threads, kFewestReadsInFlight);
  return parts.on_gpu ? WeightShard::LoadOn(config, *parts.checkpoint, spec,
                                            reads, backend, progress)
                      : WeightShard::Load(config, *parts.checkpoint, spec,
                                          reads, progress);
}

// `status` with the words that tell a user which flag it is about.
absl::Status About(absl::string_view flag, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(flag, ": ", status.message()));
}

}  // namespace

absl::StatusOr<Rank::Parts> Rank::Prepare(const WorkerFlags& flags,
                                          const MpiRuntime& mpi,
                                          Progress* progress) {
  const std::string model = absl::StrCat("--model ", flags.model);
  absl::StatusOr<ModelConfigFile> file = ReadModelConfig(flags.model);
  if (!file.ok()) return About(model, file.status());
  RING_ASSIGN_OR_RETURN(RankPlan plan,
                        PlanRank(flags, file->config, mpi.size(), mpi.rank()));
  Parts parts{.config = std::move(file->config), .plan = std::move(plan)};
  const absl::Status weights = PlanWeights(flags, &parts);
  if (!weights.ok()) return About(model, weights);
  progress->Tick();  // files and devices may each take seconds

  parts.threads = flags.threads > 0 ? flags.threads : mpi.cores();
  RING_ASSIGN_OR_RETURN(const std::string device, DeviceOf(flags, mpi));
  parts.on_gpu = device != "cpu";
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      MakeBackend(device, parts.threads);
  if (!backend.ok()) {
    return About(absl::StrCat("--device ", flags.device), backend.status());
  }
  parts.backend = *std::move(backend);
  return parts;
}

absl::StatusOr<std::unique_ptr<Rank>> Rank::Create(const WorkerFlags& flags,
                                                   Parts parts_in,
                                                   MpiRuntime* mpi,
                                                   Progress* progress,
                                                   FailureHandler on_failure) {
  std::unique_ptr<Rank> rank(new Rank(std::move(parts_in)));
  Parts& parts = rank->parts_;
  if (flags.debug_sync) {
    parts.backend = MakeDebugBackend(std::move(parts.backend), &progress->op);
  }
  const Mesh& mesh = parts.plan.mesh;
  LogInfo("rank starts", "host", mpi->host_name(), "backend",
          parts.backend->description(), "tp_rank", mesh.tp_rank(), "tp",
          mesh.tp(), "dp_rank", mesh.dp_rank(), "dp", mesh.dp());

  progress->phase = Progress::Phase::kLoading;
  RING_ASSIGN_OR_RETURN(rank->weights_, LoadWeights(parts, progress));
  parts.checkpoint.reset();  // closes the files

  CommunicatorOptions communicators;
  communicators.collectives = {parts.backend.get(), progress,
                               flags.max_batch_tokens,
                               parts.config.hidden_size};
  communicators.share_gpu = flags.share_gpu;
  communicators.on_failure = std::move(on_failure);
  RING_ASSIGN_OR_RETURN(rank->communicators_,
                        MakeCommunicators(mpi, mesh, communicators));
  Engine::Parts engine;
  engine.config = &parts.config;
  engine.weights = &rank->weights_->weights();
  engine.mesh = &mesh;
  engine.placement = &parts.plan.placement;
  engine.tp = rank->communicators_.tp.get();
  engine.dp = rank->communicators_.dp.get();
  engine.world = rank->communicators_.world.get();
  engine.backend = parts.backend.get();
  engine.progress = progress;
  absl::StatusOr<std::unique_ptr<Engine>> made =
      Engine::Create(engine, parts.plan.engine);
  if (!made.ok()) {
    // Somebody else has taken memory since the check before loading.
    return About(
        "lower --kv-tokens, --max-sequences or --max-batch-tokens, whose "
        "memory is no longer there",
        made.status());
  }
  rank->engine_ = *std::move(made);
  LogInfo("rank ready", "weight_bytes", rank->weights_->bytes(), "engine_bytes",
          parts.plan.bytes.total());
  // The leader joins the coordinator when the whole group can serve.
  std::vector<std::string> unused;
  RING_RETURN_IF_ERROR(mpi->control()->Gather("ready", &unused));
  return rank;
}

}  // namespace ring
