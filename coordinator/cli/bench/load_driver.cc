#include "coordinator/cli/bench/load_driver.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <random>
#include <utility>

#include "kernels/base/check.h"
#include "proto/status.h"

namespace ring {
namespace {

constexpr double kReportEveryS = 0.5;

}  // namespace

// One request in flight. gRPC's callbacks come one after the other.
class LoadDriver::Call final
    : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  Call(LoadDriver* driver, v1::GenerateRequest request, RequestRecord record)
      : driver_(driver),
        request_(std::move(request)),
        record_(std::move(record)) {
    SetDeadline(driver_->args_.connection, &context_);
  }

  void Start() {
    driver_->args_.stub->async()->Generate(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.has_accepted()) {
      record_.prompt_tokens = event_.accepted().prompt_tokens();
    }
    if (event_.has_finished()) finished_ = true;
    if (event_.delta().token_ids_size() > 0) {
      OnTokens(event_.delta().token_ids_size());
    }
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.end_s = driver_->Now();
    record_.status = FromGrpcStatus(status);
    if (status.ok() && !finished_) {
      record_.status =
          absl::InternalError("the stream ended without a Finished event");
    }
    driver_->OnDone(record_.index, std::move(record_));  // deletes this
  }

 private:
  void OnTokens(int count) {
    const double now = driver_->Now();
    if (record_.tokens == 0) {
      record_.first_token_s = now;
    } else {
      const double gap_ms = (now - record_.last_token_s) * 1e3 / count;
      record_.token_gaps_ms.insert(record_.token_gaps_ms.end(),
                                   static_cast<size_t>(count),
                                   static_cast<float>(gap_ms));
    }
    record_.last_token_s = now;
    record_.tokens += count;
    driver_->tokens_ += count;
  }

  LoadDriver* const driver_;
  const v1::GenerateRequest request_;
  RequestRecord record_;
  grpc::ClientContext context_;
  v1::GenerateEvent event_;
  bool finished_ = false;
};

LoadDriver::LoadDriver(Args args)
    : args_(std::move(args)), started_at_(std::chrono::steady_clock::now()) {
  RING_CHECK(!args_.token_ids.empty());
}

LoadDriver::~LoadDriver() = default;

std::vector<RequestRecord> LoadDriver::Run(
    LoadPlan plan, const std::function<void(const Progress&)>& on_progress) {
  on_progress_ = on_progress;
  for (int64_t index = 0; args_.max_requests == 0 || index < args_.max_requests;
       ++index) {
    const std::optional<PlannedRequest> planned = plan.Next();
    if (!planned.has_value() || !WaitForTurn(*planned)) break;
    Start(index, *planned);
  }
  WaitUntil(std::numeric_limits<double>::infinity(), 0);
  MutexLock lock(&mutex_);
  on_progress_(GetProgress());
  return std::move(records_);
}

void LoadDriver::Stop() {
  MutexLock lock(&mutex_);
  stopped_ = true;
  for (const auto& [index, call] : live_) call->Cancel();
  changed_.NotifyAll();
}

double LoadDriver::Now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                       started_at_)
      .count();
}

v1::GenerateRequest LoadDriver::MakeRequest(
    int64_t index, const PlannedRequest& planned) const {
  v1::GenerateRequest request;
  std::mt19937_64 random(args_.seed + static_cast<uint64_t>(index));
  if (planned.text.empty()) {
    std::uniform_int_distribution<size_t> place(0, args_.token_ids.size() - 1);
    auto* const ids = request.mutable_token_ids()->mutable_ids();
    ids->Reserve(static_cast<int>(planned.prompt_tokens));
    for (int64_t i = 0; i < planned.prompt_tokens; ++i) {
      ids->Add(args_.token_ids[place(random)]);
    }
  } else {
    request.set_text(planned.text);
  }
  request.mutable_sampling()->set_seed(random());
  request.mutable_stopping()->set_max_tokens(planned.max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

bool LoadDriver::WaitForTurn(const PlannedRequest& planned) {
  const double latest_s = args_.max_seconds > 0
                              ? args_.max_seconds
                              : std::numeric_limits<double>::infinity();
  if (args_.concurrency > 0) {
    WaitUntil(latest_s, args_.concurrency - 1);
  } else {
    WaitUntil(std::min(planned.arrival_s, latest_s), -1);
  }
  MutexLock lock(&mutex_);
  return !stopped_ && Now() < latest_s;
}

void LoadDriver::Start(int64_t index, const PlannedRequest& planned) {
  RequestRecord record;
  record.index = index;
  record.start_s = args_.concurrency > 0 ? Now() : planned.arrival_s;
  auto call = std::make_unique<Call>(this, MakeRequest(index, planned),
                                     std::move(record));
  Call* const started = call.get();
  {
    MutexLock lock(&mutex_);
    live_[index] = std::move(call);
    if (stopped_) started->Cancel();
  }
  started->Start();
}

void LoadDriver::WaitUntil(double time_s, int64_t max_live) {
  while (true) {
    Progress progress;
    {
      MutexLock lock(&mutex_);
      while (Now() < report_s_) {
        if (static_cast<int64_t>(live_.size()) <= max_live) return;
        if (Now() >= time_s || (stopped_ && max_live < 0)) return;
        changed_.WaitUntil(
            &mutex_,
            started_at_ +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                    std::chrono::duration<double>(
                        std::min(time_s, report_s_))));
      }
      progress = GetProgress();
    }
    on_progress_(progress);
    report_s_ = Now() + kReportEveryS;
  }
}

LoadDriver::Progress LoadDriver::GetProgress() {
  return {.seconds = Now(),
          .running = static_cast<int64_t>(live_.size()),
          .finished = static_cast<int64_t>(records_.size()) - failed_,
          .failed = failed_,
          .tokens = tokens_};
}

void LoadDriver::OnDone(int64_t index, RequestRecord record) {
  std::unique_ptr<Call> call;  // goes when nobody uses the driver any more
  MutexLock lock(&mutex_);
  const auto found = live_.find(index);
  call = std::move(found->second);
  live_.erase(found);
  const bool cancelled =
      stopped_ && record.status.code() == absl::StatusCode::kCancelled;
  if (!cancelled) {
    if (!record.status.ok()) ++failed_;
    records_.push_back(std::move(record));
  }
  // Under the lock: Run may return, and the driver go, as soon as it is free.
  changed_.NotifyAll();
}

}  // namespace ring
