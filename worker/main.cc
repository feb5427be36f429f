// ring-worker: one rank of a worker group.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
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
#include "worker/rank_plan.h"
#include "worker/scheduler.h"
#include "worker/start_check.h"
#include "worker/step_loop.h"
#include "worker/text_check.h"
#include "worker/watchdog.h"

namespace ring {
namespace {

// Rows of a step up to which all are sent to everybody instead of routed. 2 and
// 4 GPUs were faster so up to 256 rows on each, the most that was measured, as
// routing needs a word from the host. Between CPU ranks of one host no
// crossover was found from 1 to 512 rows (both in tests/bench/README.md); a
// small bound keeps many rows from crossing a network to every rank.
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
  const auto ranks = [&](const ModelConfig& config)
      -> absl::StatusOr<std::vector<RankToCheck>> {
    const int world_size = flags.tp * std::max(flags.dp, 1);
    std::vector<RankToCheck> world;
    for (int rank = 0; rank < world_size; ++rank) {
      RING_ASSIGN_OR_RETURN(const RankPlan plan,
                            PlanRank(flags, config, world_size, rank));
      world.push_back({plan.shard, plan.bytes.kv_pages, plan.bytes.state_slots,
                       plan.bytes.workspace});
    }
    return world;
  };
  const ModelCheck check = CheckModel(flags.model, CheckText, ranks);
  std::fputs(check.report.c_str(), stdout);
  return check.status.ok() ? 0 : 1;
}

// The launcher sends SIGTERM or SIGINT to every rank, but a rank that left on
// its own would look like a failure to the others: the leader's scheduler stops
// the group in good order, the followers wait for its word. Thread-safe.
class StopOnSignal {
 public:
  StopOnSignal()
      : watcher_([this](int, int) {
          LogInfo("stop signal: cancelling what runs");
          Stop();
        }) {}

  // From now on a signal, or Stop, stops `scheduler`; null: there is none any
  // more.
  void Serve(Scheduler* scheduler) {
    MutexLock lock(&mutex_);
    scheduler_ = scheduler;
    if (requested_ && scheduler_ != nullptr) scheduler_->Stop();
  }

  void Stop() {
    MutexLock lock(&mutex_);
    requested_ = true;
    if (scheduler_ == nullptr) return;
    scheduler_->CancelAll();
    scheduler_->Stop();
  }

 private:
  Mutex mutex_;
  Scheduler* scheduler_ GUARDED_BY(mutex_) = nullptr;
  bool requested_ GUARDED_BY(mutex_) = false;
  SignalWatcher watcher_;
};

// What the leader tells the coordinator of its group.
absl::StatusOr<CoordinatorLink::Options> DescribeGroup(const WorkerFlags& flags,
                                                       const RankPlan& plan) {
  CoordinatorLink::Options link;
  link.coordinator = flags.coordinator;
  link.tls = {flags.tls_ca, flags.tls_cert, flags.tls_key};
  RING_ASSIGN_OR_RETURN(link.group.model_digest, ModelDigest(flags.model));
  link.group.device = flags.device;
  link.group.dp = plan.mesh.dp();
  link.group.tp = plan.mesh.tp();
  link.group.max_sequences = plan.engine.max_sequences;
  link.group.kv_tokens = int64_t{plan.engine.num_pages} * kPageTokens;
  link.group.max_batch_tokens = plan.engine.max_batch_tokens;
  link.group.context_length = plan.engine.max_context;
  return link;
}

// Whether the coordinator would take this group. One that does not answer may
// be there when the weights are loaded.
absl::Status AskCoordinator(const CoordinatorLink::Options& link) {
  const absl::Status answer = CoordinatorLink::Ask(link);
  if (answer.ok()) return answer;
  if (absl::IsFailedPrecondition(answer) || absl::IsInvalidArgument(answer) ||
      absl::IsNotFound(answer)) {
    return absl::Status(answer.code(),
                        absl::StrCat("--coordinator ", link.coordinator, ": ",
                                     answer.message()));
  }
  LogWarning("the coordinator does not answer: loading all the same",
             "coordinator", link.coordinator, "why", answer.message());
  return absl::OkStatus();
}

// One rank from a running watchdog to the end of its step loop.
class Worker {
 public:
  struct Parts {
    const WorkerFlags* flags = nullptr;
    MpiRuntime* mpi = nullptr;
    SideLink* side_link = nullptr;
    Progress* progress = nullptr;
    StopOnSignal* stop = nullptr;
    Watchdog* watchdog = nullptr;
  };
  explicit Worker(const Parts& parts)
      : parts_(parts), flags_(*parts.flags), mpi_(parts.mpi) {}

  // An error is an incident: this rank cannot go on.
  absl::Status Run() {
    absl::StatusOr<Rank::Parts> found =
        Rank::Prepare(flags_, *mpi_, parts_.progress);
    RING_RETURN_IF_ERROR(CheckStart(found));
    if (!mistake_.empty()) return absl::OkStatus();
    RING_ASSIGN_OR_RETURN(
        const std::unique_ptr<Rank> rank,
        Rank::Create(
            flags_, *std::move(found), mpi_, parts_.progress,
            [this](const std::string& what) { parts_.watchdog->Fail(what); }));
    if (flags_.bench) {
      RING_RETURN_IF_ERROR(RunBench(flags_, rank.get(), parts_.progress));
      return rank->Close();
    }
    StepLoop loop({.control = mpi_->control(),
                   .side_link = parts_.side_link,
                   .engine = &rank->engine(),
                   .progress = parts_.progress,
                   .data_parallel = rank->mesh().dp(),
                   .tensor_parallel = rank->mesh().tp(),
                   .overlap = rank->on_gpu()});
    RING_RETURN_IF_ERROR(rank->mesh().is_leader() ? Lead(*rank, &loop)
                                                  : loop.RunFollower());
    return rank->Close();
  }

  // After Run: why the group ends though no rank has failed, as the user should
  // read it; empty when it was told to end. Of the leader, or of all ranks.
  const std::string& mistake() const { return mistake_; }

 private:
  // Collective, before anything is loaded. Leaves what is wrong in mistake_.
  absl::Status CheckStart(const absl::StatusOr<Rank::Parts>& found) {
    absl::Status own = found.status();
    const bool leads = mpi_->rank() == 0;
    if (own.ok() && flags_.bench) {
      own = CheckBench(flags_, found->plan.engine);
    } else if (own.ok() && leads) {
      absl::StatusOr<CoordinatorLink::Options> link =
          DescribeGroup(flags_, found->plan);
      parts_.progress->Tick();
      own = link.ok() ? AskCoordinator(*link) : link.status();
      if (own.ok()) link_ = *std::move(link);
    }
    RING_RETURN_IF_ERROR(Agree(own));
    if (!mistake_.empty()) return absl::OkStatus();

    const MemoryNeed need{found->weight_bytes, found->plan.bytes};
    RING_ASSIGN_OR_RETURN(
        int64_t neighbours,
        BytesOfNeighbours(mpi_->control(), parts_.side_link->hosts(),
                          need.total()));
    // Ranks of a host share its memory, but each has its own GPU.
    if (found->on_gpu && !flags_.share_gpu) neighbours = 0;
    return Agree(CheckMemory(flags_, need, neighbours,
                             found->backend->AvailableBytes()));
  }

  absl::Status Agree(const absl::Status& own) {
    RING_ASSIGN_OR_RETURN(
        mistake_, FirstMistake(mpi_->control(), mpi_->host_name(), own));
    return absl::OkStatus();
  }

  // Rows of a step that are sent to everybody. With --deterministic the way
  // through the experts must not depend on their number.
  int64_t ReplicatedRows(const Rank& rank) const {
    if (flags_.deterministic) return 0;
    return rank.on_gpu() ? kReplicatedRowsOnGpu : kReplicatedRows;
  }

  // What only the leader does: schedule, and talk to the coordinator. Returns
  // when the group is to end in good order.
  absl::Status Lead(const Rank& rank, StepLoop* loop) {
    const Mesh& mesh = rank.mesh();
    Scheduler scheduler({.data_parallel = mesh.dp(),
                         .tensor_parallel = mesh.tp(),
                         .cache = {flags_.max_sequences, rank.num_pages()},
                         .max_batch_tokens = flags_.max_batch_tokens,
                         .max_context = rank.max_context(),
                         .max_queued = flags_.max_queued,
                         .exchange = ExchangeOf(flags_),
                         .replicated_rows = ReplicatedRows(rank),
                         .pad_decode_rows = rank.on_gpu()});
    parts_.stop->Serve(&scheduler);
    // A coordinator with another model may have taken the place of the first.
    absl::Status refusal;
    link_.on_refused = [&](absl::Status status) {
      refusal = std::move(status);
      parts_.stop->Stop();
    };
    absl::Status status;
    {
      RING_ASSIGN_OR_RETURN(const std::unique_ptr<CoordinatorLink> events,
                            CoordinatorLink::Start(link_, &scheduler));
      status = loop->RunLeader(&scheduler, events.get());
      parts_.stop->Serve(nullptr);
    }  // the link's threads have ended
    if (!refusal.ok()) {
      mistake_ = absl::StrCat("the coordinator at ", flags_.coordinator,
                              " refused this group: ", refusal.message());
    }
    return status;
  }

  const Parts parts_;
  const WorkerFlags& flags_;
  MpiRuntime* const mpi_;
  CoordinatorLink::Options link_;  // the leader's
  std::string mistake_;
};

void SayMistake(const std::string& mistake) {
  std::fprintf(stderr, "ring-worker: %s\n", mistake.c_str());
}

// A rank whose engine cannot go on ends the group; only a run without failure
// finalizes MPI.
int RunInWorld(const WorkerFlags& flags, MpiRuntime* mpi, Progress* progress,
               StopOnSignal* stop) {
  SideLink::Options link;
  link.host_name = mpi->host_name();
  absl::StatusOr<std::unique_ptr<SideLink>> side_link =
      SideLink::Create(mpi->control(), progress, link);
  if (!side_link.ok()) {
    LogError("cannot link the ranks", "reason", side_link.status().message());
    return 1;
  }
  Watchdog::Options options;
  options.incident_file = flags.incident_file;
  Watchdog watchdog(side_link->get(), progress, options);
  Worker worker({.flags = &flags,
                 .mpi = mpi,
                 .side_link = side_link->get(),
                 .progress = progress,
                 .stop = stop,
                 .watchdog = &watchdog});
  // The group hears what a failed check, or a device's error, has to say.
  SetCheckHandler([&](const std::string& what) {
    const char* const op = progress->op;
    watchdog.Fail(op == nullptr ? what : absl::StrCat(what, " in op ", op));
  });
  const absl::Status run = worker.Run();
  if (!run.ok()) watchdog.Fail(std::string(run.message()));
  SetCheckHandler(nullptr);
  int exit_code = 0;
  if (!worker.mistake().empty()) {
    exit_code = kMistakeExitCode;
    if (mpi->rank() == 0) SayMistake(worker.mistake());
  }
  watchdog.Stop();
  return exit_code;
}

// The ranks agree on the flags first: one of them may have others, and one
// message about them is enough.
int RunRank(const absl::StatusOr<WorkerFlags>& flags) {
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
  const absl::StatusOr<std::string> mistake =
      FirstMistake((*mpi)->control(), (*mpi)->host_name(), flags.status());
  if (!mistake.ok()) {
    LogError("cannot start", "reason", mistake.status().message());
    return 1;
  }
  int exit_code = kMistakeExitCode;
  if (mistake->empty()) {
    exit_code = RunInWorld(*flags, mpi->get(), &progress, &stop);
  } else if ((*mpi)->rank() == 0) {
    SayMistake(*mistake);
  }
  const absl::Status ended = (*mpi)->Shutdown();
  if (!ended.ok()) LogError("unclean end", "reason", ended.message());
  if (exit_code == 0) LogInfo("rank ends");
  return ended.ok() ? exit_code : 1;
}

int Main(int argc, char** argv) {
  int exit_code = -1;
  const absl::StatusOr<WorkerFlags> flags =
      ParseWorkerFlags(argc, argv, &exit_code);
  if (exit_code >= 0) return exit_code;
  if (!flags.ok() && !StartedByLauncher()) {
    SayMistake(std::string(flags.status().message()));
    return kMistakeExitCode;
  }
  if (flags.ok()) {
    if (flags->check) return RunCheck(*flags);
  }
  return RunRank(flags);
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) { return ring::Main(argc, argv); }
