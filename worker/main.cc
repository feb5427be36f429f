// ring-worker: one rank of a worker group.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "kernels/base/signal_watcher.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/mpi_runtime.h"
#include "parallel/side_link.h"
#include "worker/bench_main.h"
#include "worker/coordinator_link.h"
#include "worker/flags.h"
#include "worker/model/model_check.h"
#include "worker/model_files/digest.h"
#include "worker/rank.h"
#include "worker/scheduler.h"
#include "worker/shard_of_mesh.h"
#include "worker/step_loop.h"
#include "worker/watchdog.h"

namespace ring {
namespace {

// Few rows are cheaper to send to everybody than to route. On GPUs sending to
// everybody also needs no word from the host.
constexpr int64_t kReplicatedRows = 16;
constexpr int64_t kReplicatedRowsOnGpu = 256;

Scheduler::ExchangePolicy ExchangeOf(const WorkerFlags& flags) {
  if (flags.moe_exchange == "alltoall") {
    return Scheduler::ExchangePolicy::kAllToAll;
  }
  if (flags.moe_exchange == "replicated") {
    return Scheduler::ExchangePolicy::kReplicated;
  }
  return Scheduler::ExchangePolicy::kAuto;
}

// `--check`: the report of every rank of a world of dp x tp, without MPI.
int RunCheck(const WorkerFlags& flags) {
  const auto ranks =
      [&](const ModelConfig& config) -> absl::StatusOr<std::vector<ShardSpec>> {
    const int world_size = flags.tp * std::max(flags.dp, 1);
    RING_ASSIGN_OR_RETURN(
        const ExpertPlacement placement,
        ExpertPlacement::Contiguous(config.num_hidden_layers,
                                    config.num_experts, world_size));
    std::vector<ShardSpec> specs;
    for (int rank = 0; rank < world_size; ++rank) {
      RING_ASSIGN_OR_RETURN(const Mesh mesh, MakeMesh(config, world_size, rank,
                                                      flags.tp, flags.dp));
      specs.push_back(MakeShardSpec(config, mesh, placement));
      specs.back().format = WeightFormatOf(flags);
    }
    return specs;
  };
  const ModelCheck check = CheckModel(flags.model, ranks);
  std::fputs(check.report.c_str(), stdout);
  return check.status.ok() ? 0 : 1;
}

// The launcher sends SIGTERM or SIGINT to every rank, but a rank that left on
// its own would look like a failure to the others: the leader's scheduler stops
// the group in good order, the followers wait for its word. Thread-safe.
class StopOnSignal {
 public:
  StopOnSignal() : watcher_([this](int) { Stop(); }) {}

  // From now on a signal stops `scheduler`; null: there is none any more.
  void Serve(Scheduler* scheduler) {
    MutexLock lock(&mutex_);
    scheduler_ = scheduler;
    if (requested_ && scheduler_ != nullptr) scheduler_->Stop();
  }

 private:
  void Stop() {
    MutexLock lock(&mutex_);
    requested_ = true;
    if (scheduler_ == nullptr) return;
    LogInfo("stop signal: cancelling what runs");
    scheduler_->CancelAll();
    scheduler_->Stop();
  }

  Mutex mutex_;
  Scheduler* scheduler_ GUARDED_BY(mutex_) = nullptr;
  bool requested_ GUARDED_BY(mutex_) = false;
  SignalWatcher watcher_;
};

// What only the leader does: schedule, and talk to the coordinator. Returns
// when the group is to end in good order.
absl::Status Lead(const WorkerFlags& flags, const Rank& rank, StepLoop* loop,
                  StopOnSignal* stop, Watchdog* watchdog) {
  const Mesh& mesh = rank.mesh();
  Scheduler scheduler({.data_parallel = mesh.dp(),
                       .tensor_parallel = mesh.tp(),
                       .cache = {flags.max_sequences, rank.num_pages()},
                       .max_batch_tokens = flags.max_batch_tokens,
                       .max_context = rank.max_context(),
                       .max_queued = flags.max_queued,
                       .exchange = ExchangeOf(flags),
                       .replicated_rows = rank.on_gpu() ? kReplicatedRowsOnGpu
                                                        : kReplicatedRows,
                       .pad_decode_rows = rank.on_gpu()});
  stop->Serve(&scheduler);
  CoordinatorLink::Options link;
  link.coordinator = flags.coordinator;
  link.tls_ca = flags.tls_ca;
  link.tls_cert = flags.tls_cert;
  link.tls_key = flags.tls_key;
  RING_ASSIGN_OR_RETURN(link.group.model_digest, ModelDigest(flags.model));
  link.group.device = flags.device;
  link.group.dp = mesh.dp();
  link.group.tp = mesh.tp();
  link.group.max_sequences = flags.max_sequences;
  link.group.kv_tokens = int64_t{rank.num_pages()} * kPageTokens;
  link.group.max_batch_tokens = flags.max_batch_tokens;
  link.group.context_length = rank.max_context();
  link.on_refused = [watchdog](absl::Status status) {
    watchdog->Fail(
        absl::StrCat("the coordinator refused this group: ", status.message()));
  };
  RING_ASSIGN_OR_RETURN(const std::unique_ptr<CoordinatorLink> events,
                        CoordinatorLink::Start(link, &scheduler));
  const absl::Status status = loop->RunLeader(&scheduler, events.get());
  stop->Serve(nullptr);
  return status;
}

// Everything between a running watchdog and the end of the step loop.
absl::Status Serve(const WorkerFlags& flags, MpiRuntime* mpi,
                   SideLink* side_link, Progress* progress, StopOnSignal* stop,
                   Watchdog* watchdog) {
  RING_ASSIGN_OR_RETURN(
      const std::unique_ptr<Rank> rank,
      Rank::Create(flags, mpi, progress, [watchdog](const std::string& what) {
        watchdog->Fail(what);
      }));
  if (flags.bench) {
    RING_RETURN_IF_ERROR(RunBench(flags, rank.get()));
    return rank->Close();
  }
  StepLoop loop({.control = mpi->control(),
                 .side_link = side_link,
                 .engine = &rank->engine(),
                 .progress = progress,
                 .data_parallel = rank->mesh().dp(),
                 .tensor_parallel = rank->mesh().tp(),
                 .overlap = rank->on_gpu()});
  RING_RETURN_IF_ERROR(rank->mesh().is_leader()
                           ? Lead(flags, *rank, &loop, stop, watchdog)
                           : loop.RunFollower());
  return rank->Close();
}

// A rank whose engine cannot go on ends the group; only a run without failure
// finalizes MPI.
int RunRank(const WorkerFlags& flags) {
  // Before MPI starts threads, so that none of them takes the signals.
  StopOnSignal stop;
  Progress progress;
  MpiRuntime::Options runtime;
  runtime.progress = &progress;
  absl::StatusOr<std::unique_ptr<MpiRuntime>> mpi = MpiRuntime::Create(runtime);
  if (!mpi.ok()) {
    LogError("cannot start", "reason", mpi.status().message());
    return 1;
  }
  SetLogIdentity(absl::StrCat("rank ", (*mpi)->rank()));
  SideLink::Options link;
  link.host_name = (*mpi)->host_name();
  absl::StatusOr<std::unique_ptr<SideLink>> side_link =
      SideLink::Create((*mpi)->control(), &progress, link);
  if (!side_link.ok()) {
    LogError("cannot link the ranks", "reason", side_link.status().message());
    return 1;
  }
  Watchdog::Options options;
  options.incident_file = flags.incident_file;
  Watchdog watchdog(side_link->get(), &progress, options);
  // The group hears what a failed check, or a device's error, has to say.
  SetCheckHandler([&](const std::string& what) {
    const char* const op = progress.op;
    watchdog.Fail(op == nullptr ? what : absl::StrCat(what, " in op ", op));
  });
  const absl::Status served =
      Serve(flags, mpi->get(), side_link->get(), &progress, &stop, &watchdog);
  if (!served.ok()) watchdog.Fail(std::string(served.message()));
  SetCheckHandler(nullptr);
  watchdog.Stop();
  const absl::Status ended = (*mpi)->Shutdown();
  if (!ended.ok()) LogError("unclean end", "reason", ended.message());
  LogInfo("rank ends");
  return ended.ok() ? 0 : 1;
}

int Main(int argc, char** argv) {
  int exit_code = -1;
  const absl::StatusOr<WorkerFlags> flags =
      ParseWorkerFlags(argc, argv, &exit_code);
  if (!flags.ok()) {
    std::fprintf(stderr, "ring-worker: %s\n",
                 std::string(flags.status().message()).c_str());
    return 2;
  }
  if (exit_code >= 0) return exit_code;
  SetLogLevel(flags->verbose ? LogLevel::kDebug : LogLevel::kInfo);
  if (flags->check) return RunCheck(*flags);
  return RunRank(*flags);
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) { return ring::Main(argc, argv); }
