#include "worker/step_loop.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "parallel/side_link.h"
#include "ring/v1/plan.pb.h"
#include "worker/engine.h"
#include "worker/scheduler.h"

namespace ring {
namespace {

#ifdef RING_DCHECKS
// Every rank holds the same plan: the broadcast bytes have one hash.
absl::Status CheckSamePlan(ControlChannel* control, absl::string_view bytes) {
  const std::string mine =
      absl::StrCat(std::hash<std::string>{}(std::string(bytes)));
  std::vector<std::string> all;
  RING_RETURN_IF_ERROR(control->AllGather(mine, &all));
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] != mine) {
      return absl::InternalError(absl::StrCat(
          "rank ", rank, " has another plan than rank ", control->rank()));
    }
  }
  return absl::OkStatus();
}
#endif

}  // namespace

absl::Status StepLoop::SendOrder(int kind) {
  v1::BatchPlan plan;
  plan.set_kind(static_cast<v1::BatchPlan::Kind>(kind));
  std::string bytes = plan.SerializeAsString();
  return parts_.control->Broadcast(&bytes);
}

absl::Status StepLoop::RunLeader(Scheduler* scheduler, EventSink* sink) {
  sink->PublishLoad(scheduler->Load());
  for (;;) {
    if (!scheduler->HasWork()) {
      RING_RETURN_IF_ERROR(SendOrder(v1::BatchPlan::PARK));
      parts_.progress->EnterIdle();
      const bool more = scheduler->WaitForWork();
      parts_.progress->phase = Progress::Phase::kComputing;
      parts_.progress->Tick();
      if (parts_.side_link != nullptr) parts_.side_link->Wake();
      if (!more) return SendOrder(v1::BatchPlan::SHUTDOWN);
    }
    RING_RETURN_IF_ERROR(ExecuteStep(scheduler, sink));
  }
}

absl::Status StepLoop::ExecuteStep(Scheduler* scheduler, EventSink* sink) {
  v1::BatchPlan plan;
  const bool planned = scheduler->NextPlan(&plan);
  if (planned) {
    if (parts_.control->size() > 1) {
      std::string bytes = plan.SerializeAsString();
      RING_RETURN_IF_ERROR(parts_.control->Broadcast(&bytes));
#ifdef RING_DCHECKS
      RING_RETURN_IF_ERROR(CheckSamePlan(parts_.control, bytes));
#endif
    }
    RING_RETURN_IF_ERROR(parts_.engine->Enqueue(plan));
  }
  if (MustCollect(planned)) {
    if (!planned) RING_RETURN_IF_ERROR(SendOrder(v1::BatchPlan::COLLECT));
    RING_RETURN_IF_ERROR(CollectAndCommit(scheduler));
  }
  std::vector<TokenEvent> events = scheduler->TakeEvents();
  // Before the events: who sees a request end finds its memory free.
  sink->PublishLoad(scheduler->Load());
  if (!events.empty()) sink->Publish(std::move(events));
  return absl::OkStatus();
}

bool StepLoop::MustCollect(bool queued) const {
  const int kept = parts_.overlap && queued ? 1 : 0;
  return parts_.engine->steps_in_flight() > kept;
}

absl::Status StepLoop::CollectAndCommit(Scheduler* scheduler) {
  std::vector<v1::StepResult> results(parts_.data_parallel);
  results[0] = parts_.engine->Collect();
  if (parts_.data_parallel > 1) {
    // The first tensor-parallel rank of each group speaks for it.
    std::vector<std::string> all;
    RING_RETURN_IF_ERROR(parts_.control->Gather("", &all));
    for (int group = 1; group < parts_.data_parallel; ++group) {
      const std::string& bytes = all[group * parts_.tensor_parallel];
      if (!results[group].ParseFromString(bytes)) {
        return absl::InternalError(
            absl::StrCat("cannot parse the results of group ", group));
      }
    }
  }
  scheduler->Commit(results);
  return absl::OkStatus();
}

absl::Status StepLoop::RunFollower() {
  std::string bytes;
  v1::BatchPlan plan;
  for (;;) {
    RING_RETURN_IF_ERROR(parts_.control->Broadcast(&bytes));
    if (!plan.ParseFromString(bytes)) {
      return absl::InternalError("cannot parse the leader's plan");
    }
    switch (plan.kind()) {
      case v1::BatchPlan::SHUTDOWN:
        return absl::OkStatus();
      case v1::BatchPlan::PARK:
        parts_.progress->EnterIdle();
        if (parts_.side_link != nullptr) {
          RING_RETURN_IF_ERROR(parts_.side_link->Park());
        }
        parts_.progress->phase = Progress::Phase::kComputing;
        parts_.progress->Tick();
        break;
      case v1::BatchPlan::STEP:
#ifdef RING_DCHECKS
        RING_RETURN_IF_ERROR(CheckSamePlan(parts_.control, bytes));
#endif
        RING_RETURN_IF_ERROR(parts_.engine->Enqueue(plan));
        if (MustCollect(/*queued=*/true)) {
          RING_RETURN_IF_ERROR(CollectAndSend());
        }
        break;
      case v1::BatchPlan::COLLECT:
        RING_RETURN_IF_ERROR(CollectAndSend());
        break;
      default:
        return absl::InternalError(
            absl::StrCat("the leader's plan has kind ", plan.kind()));
    }
  }
}

absl::Status StepLoop::CollectAndSend() {
  const v1::StepResult result = parts_.engine->Collect();
  if (parts_.data_parallel == 1) return absl::OkStatus();
  const bool speaks = parts_.control->rank() % parts_.tensor_parallel == 0;
  std::vector<std::string> unused;  // Gather fills it on the leader only
  return parts_.control->Gather(
      speaks ? result.SerializeAsString() : std::string(), &unused);
}

}  // namespace ring
