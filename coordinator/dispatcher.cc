#include "coordinator/dispatcher.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/log.h"
#include "proto/protocol.h"

namespace ring {
namespace {

using std::chrono::steady_clock;

int64_t MicrosecondsSince(steady_clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             steady_clock::now() - start)
      .count();
}

}  // namespace

Dispatcher::Dispatcher(Options options)
    : options_(std::move(options)), started_at_(steady_clock::now()) {}

absl::Status Dispatcher::Submit(std::shared_ptr<Request> request) {
  MutexLock lock(&mutex_);
  absl::Status admission = CheckAdmission(*request);
  if (!admission.ok()) return admission;
  const int64_t position = table_.waiting();
  table_.Insert(request->id(), request->name(), request);
  request->Accept(position);
  Pump();
  return absl::OkStatus();
}

absl::Status Dispatcher::CheckAdmission(const Request& request) {
  if (draining_) {
    return absl::UnavailableError(
        "the coordinator is shutting down: send the request to another one, "
        "or again when it is back");
  }
  if (!router_.Serving()) {
    return absl::UnavailableError(
        absl::StrCat("no worker group serves ", options_.model_name,
                     ": start ring-worker, or wait until it has loaded (ring "
                     "status shows the groups)"));
  }
  const int64_t longest = router_.MaxSequenceTokens();
  if (request.least_tokens() > longest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", request.prompt_tokens(), " tokens",
        request.asked_tokens() > 0
            ? absl::StrCat(" and max_tokens is ", request.asked_tokens())
            : "",
        ", but the worker groups hold sequences of at most ", longest,
        " tokens, prompt and completion together (--kv-tokens, "
        "--max-context)"));
  }
  const int64_t most = router_.MaxSequences();
  if (request.choices() > most) {
    return absl::InvalidArgumentError(absl::StrCat(
        "choices = ", request.choices(), ", but the worker groups run at most ",
        most, " sequences at once (--max-sequences)"));
  }
  if (table_.FindByName(request.name()) != nullptr) {
    return absl::AlreadyExistsError(
        absl::StrCat("request_id ", request.name(), " is live already"));
  }
  const bool runs_now = table_.waiting() == 0 &&
                        router_
                            .Pick(request.least_tokens(), request.most_tokens(),
                                  request.choices())
                            .has_value();
  if (!runs_now && table_.waiting() >= options_.max_queued) {
    return QueueIsFull();
  }
  return absl::OkStatus();
}

absl::Status Dispatcher::CheckQueue() {
  MutexLock lock(&mutex_);
  // While others wait no request starts before them.
  if (table_.waiting() == 0 || table_.waiting() < options_.max_queued) {
    return absl::OkStatus();
  }
  return QueueIsFull();
}

absl::Status Dispatcher::QueueIsFull() {
  return WithRetryAfter(
      absl::ResourceExhaustedError(absl::StrCat(
          "the queue is full: --max-queued lets ", options_.max_queued,
          " requests wait for a worker group; ", kRetryAfterMetadata,
          " says when to try again")),
      retry_estimate_.Get(table_.size() - table_.waiting(), table_.waiting()));
}

void Dispatcher::Pump() {
  while (RequestTable::Entry* entry = table_.FirstWaiting()) {
    const Request& request = *entry->request;
    const std::optional<int64_t> group = router_.Pick(
        request.least_tokens(), request.most_tokens(), request.choices());
    if (!group.has_value()) return;
    entry->assigned_at = steady_clock::now();
    table_.AssignFirst(*group);
    router_.Assign(*group, request.most_tokens(), request.choices());
    v1::ToWorker message;
    *message.mutable_submit() =
        entry->request->MakeSubmit(router_.Find(*group)->info.epoch);
    links_[*group]->Send(std::move(message));
  }
}

void Dispatcher::Cancel(uint64_t id, const absl::Status& why) {
  MutexLock lock(&mutex_);
  Fail(id, why);
  Pump();
}

absl::Status Dispatcher::Abort(const std::string& name) {
  MutexLock lock(&mutex_);
  const RequestTable::Entry* entry = table_.FindByName(name);
  if (entry == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no live request has the request_id ", name));
  }
  Fail(entry->request->id(), absl::CancelledError("aborted by Control.Abort"));
  Pump();
  return absl::OkStatus();
}

void Dispatcher::Fail(uint64_t id, const absl::Status& why) {
  const RequestTable::Entry* entry = table_.Find(id);
  if (entry == nullptr) return;
  const std::shared_ptr<Request> request = entry->request;
  if (entry->group != 0) SendCancel(entry->group, id);
  Forget(id);
  ++failed_requests_;
  request->Fail(why);
}

void Dispatcher::SendCancel(int64_t group, uint64_t id,
                            std::optional<int> choice) {
  const auto link = links_.find(group);
  if (link == links_.end()) return;
  v1::ToWorker message;
  message.mutable_cancel()->set_id(id);
  if (choice.has_value()) message.mutable_cancel()->set_choice(*choice);
  link->second->Send(std::move(message));
}

void Dispatcher::Forget(uint64_t id) {
  const RequestTable::Entry* entry = table_.Find(id);
  if (entry == nullptr) return;
  if (entry->group != 0) {
    retry_estimate_.OnEnd(steady_clock::now() - entry->assigned_at);
  }
  router_.Release(entry->group, entry->request->most_tokens(),
                  entry->request->choices());
  table_.Erase(id);
  if (table_.size() == 0) idle_.NotifyAll();
}

absl::StatusOr<int64_t> Dispatcher::AddGroup(GroupInfo info,
                                             std::shared_ptr<GroupLink> link) {
  MutexLock lock(&mutex_);
  if (draining_) {
    return absl::UnavailableError("the coordinator is shutting down");
  }
  if (const std::optional<int64_t> former = router_.FindByKey(info.key)) {
    const int64_t former_epoch = router_.Find(*former)->info.epoch;
    if (info.epoch <= former_epoch) {
      return absl::FailedPreconditionError(
          absl::StrCat("epoch ", info.epoch, " of ", Describe(*former),
                       " is not newer than ", former_epoch));
    }
    links_[*former]->Close(absl::AbortedError("the group has joined again"));
    Remove(*former, "it has joined again");
  }
  const int64_t group = router_.Add(std::move(info));
  v1::ToWorker message;
  v1::Welcome* welcome = message.mutable_welcome();
  welcome->set_protocol_version(kProtocolVersion);
  welcome->set_group_id(group);
  welcome->set_num_token_ids(options_.num_token_ids);
  link->Send(std::move(message));
  links_[group] = std::move(link);
  const Router::Group& added = *router_.Find(group);
  // Sums over the data-parallel groups, as GetLoad has them.
  LogInfo("group joined", "group", group, "host", added.info.host, "pid",
          added.info.pid, "epoch", added.info.epoch, "dp", added.info.dp, "tp",
          added.info.tp, "device", added.info.device, "max_sequences",
          added.capacity_sequences(), "kv_tokens", added.capacity_tokens(),
          "max_batch_tokens", added.info.dp * added.info.max_batch_tokens,
          "context_length", added.info.context_length);
  UpdateServing();
  Pump();
  return group;
}

void Dispatcher::RemoveGroup(int64_t group, const std::string& why) {
  MutexLock lock(&mutex_);
  if (router_.Find(group) == nullptr) return;
  Remove(group, why);
  FailStranded();
  UpdateServing();
  Pump();
}

void Dispatcher::Remove(int64_t group, const std::string& why) {
  const std::vector<uint64_t> lost = table_.OfGroup(group);
  const std::string name = Describe(group);
  LogWarning("group left", "group", group, "why", why, "requests", lost.size());
  links_.erase(group);
  for (const uint64_t id : lost) {
    Fail(id, absl::UnavailableError(absl::StrCat(name, " was lost: ", why,
                                                 "; send the request again")));
  }
  router_.Remove(group);
}

void Dispatcher::FailStranded() {
  const int64_t longest = router_.MaxSequenceTokens();
  const int64_t most = router_.MaxSequences();
  for (const uint64_t id : table_.OfGroup(0)) {
    const Request& request = *table_.Find(id)->request;
    if (request.least_tokens() <= longest && request.choices() <= most) {
      continue;
    }
    Fail(id, absl::UnavailableError(
                 "the last worker group that could run this request was "
                 "lost: send it again when ring status shows one"));
  }
}

void Dispatcher::UpdateServing() {
  const bool serving = !draining_ && router_.Serving();
  if (serving == serving_) return;
  serving_ = serving;
  LogInfo(serving ? "serving" : "not serving");
  if (options_.on_serving) options_.on_serving(serving);
}

void Dispatcher::OnLoad(int64_t group, const v1::Load& load) {
  MutexLock lock(&mutex_);
  Router::Group* const found = router_.Find(group);
  if (found == nullptr) return;
  found->reported = {.free_pages = load.free_pages(),
                     .free_slots = load.free_slots(),
                     .free_tokens = load.free_tokens(),
                     .queued = load.queued(),
                     .running = load.running()};
}

void Dispatcher::OnTokens(int64_t group, const v1::TokenEvents& events) {
  struct Work {
    std::shared_ptr<Request> request;
    const v1::RequestTokens* tokens;
  };
  std::vector<Work> work;
  {
    MutexLock lock(&mutex_);
    for (const v1::RequestTokens& tokens : events.requests()) {
      const RequestTable::Entry* const entry = table_.Find(tokens.id());
      if (entry == nullptr || entry->group != group) continue;
      generated_tokens_ += tokens.token_ids_size();
      work.push_back({entry->request, &tokens});
    }
  }
  // Text is made outside of the lock: requests of other groups go on.
  for (const Work& item : work) {
    const Request::Outcome outcome = item.request->OnTokens(*item.tokens);
    if (outcome == Request::Outcome::kLive) continue;
    if (outcome == Request::Outcome::kChoiceStopped) {
      MutexLock lock(&mutex_);
      SendCancel(group, item.request->id(), item.tokens->choice());
    } else {
      End(group, outcome, item.request.get());
    }
  }
}

void Dispatcher::End(int64_t group, Request::Outcome outcome,
                     Request* request) {
  {
    MutexLock lock(&mutex_);
    if (table_.Find(request->id()) != nullptr) {  // else cancelled meanwhile
      if (outcome != Request::Outcome::kFinished) {
        SendCancel(group, request->id());
      }
      Forget(request->id());
      ++(outcome == Request::Outcome::kFailed ? failed_requests_
                                              : finished_requests_);
      Pump();
    }
  }
  request->Conclude();
}

void Dispatcher::OnFailed(int64_t group, uint64_t id,
                          const absl::Status& status) {
  MutexLock lock(&mutex_);
  const RequestTable::Entry* entry = table_.Find(id);
  if (entry == nullptr || entry->group != group) return;
  const std::shared_ptr<Request> request = entry->request;
  const std::string name = Describe(group);
  Forget(id);
  ++failed_requests_;
  request->Fail(
      absl::Status(status.code(), absl::StrCat(name, ": ", status.message())));
  Pump();
}

absl::StatusOr<int64_t> Dispatcher::DrainGroup(int64_t group) {
  MutexLock lock(&mutex_);
  Router::Group* const found = router_.Find(group);
  if (found == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("there is no worker group ", group));
  }
  found->draining = true;
  v1::ToWorker message;
  message.mutable_drain();
  links_[group]->Send(std::move(message));
  FailStranded();
  UpdateServing();
  return found->assigned_requests;
}

void Dispatcher::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  LogInfo("draining", "live_requests", table_.size());
  UpdateServing();
}

bool Dispatcher::WaitUntilIdle(steady_clock::time_point deadline) {
  MutexLock lock(&mutex_);
  while (table_.size() > 0) {
    if (!idle_.WaitUntil(&mutex_, deadline)) return table_.size() == 0;
  }
  return true;
}

void Dispatcher::CancelAll(const absl::Status& why) {
  MutexLock lock(&mutex_);
  for (const uint64_t id : table_.All()) Fail(id, why);
}

void Dispatcher::Shutdown(const absl::Status& why) {
  MutexLock lock(&mutex_);
  draining_ = true;
  for (const uint64_t id : table_.All()) Fail(id, why);
  for (const auto& [group, link] : links_) link->Close(why);
  UpdateServing();
}

int64_t Dispatcher::live_requests() {
  MutexLock lock(&mutex_);
  return table_.size();
}

v1::GetLoadResponse Dispatcher::GetLoad() {
  MutexLock lock(&mutex_);
  v1::GetLoadResponse response;
  for (const auto& [id, group] : router_.groups()) {
    v1::GroupLoad* load = response.add_groups();
    load->set_group_id(id);
    load->set_host(group.info.host);
    load->set_pid(group.info.pid);
    load->set_epoch(group.info.epoch);
    load->set_dp(group.info.dp);
    load->set_tp(group.info.tp);
    load->set_max_sequences(group.capacity_sequences());
    load->set_kv_tokens(group.capacity_tokens());
    load->set_free_pages(group.reported.free_pages);
    load->set_free_slots(group.reported.free_slots);
    load->set_free_tokens(group.reported.free_tokens);
    load->set_queued(group.reported.queued);
    load->set_running(group.reported.running);
    load->set_assigned_requests(group.assigned_requests);
    load->set_assigned_tokens(group.assigned_tokens);
    load->set_draining(group.draining);
    load->set_joined_us(MicrosecondsSince(group.joined_at));
    load->set_device(group.info.device);
  }
  response.set_queued(table_.waiting());
  response.set_running(table_.size() - table_.waiting());
  response.set_max_queued(options_.max_queued);
  response.set_draining(draining_);
  response.set_uptime_us(MicrosecondsSince(started_at_));
  response.set_finished_requests(finished_requests_);
  response.set_failed_requests(failed_requests_);
  response.set_generated_tokens(generated_tokens_);
  return response;
}

std::string Dispatcher::Describe(int64_t group) {
  const Router::Group* const found = router_.Find(group);
  if (found == nullptr) return absl::StrCat("worker group ", group);
  return absl::StrCat("worker group ", group, " (host ", found->info.host,
                      ", pid ", found->info.pid, ")");
}

}  // namespace ring
