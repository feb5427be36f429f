#include "coordinator/cli/server_status.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <functional>

#include "absl/strings/str_format.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {
namespace {

nlohmann::ordered_json GroupJson(const v1::GroupLoad& group) {
  return {{"group_id", group.group_id()},
          {"host", group.host()},
          {"pid", group.pid()},
          {"device", group.device()},
          {"dp", group.dp()},
          {"tp", group.tp()},
          {"epoch", group.epoch()},
          {"draining", group.draining()},
          {"max_sequences", group.max_sequences()},
          {"kv_tokens", group.kv_tokens()},
          {"assigned_requests", group.assigned_requests()},
          {"assigned_tokens", group.assigned_tokens()},
          {"queued", group.queued()},
          {"running", group.running()},
          {"free_pages", group.free_pages()},
          {"free_slots", group.free_slots()},
          {"free_tokens", group.free_tokens()}};
}

}  // namespace

bool ServerStatus::serving() const {
  return !load.draining() &&
         std::any_of(load.groups().begin(), load.groups().end(),
                     [](const auto& group) { return !group.draining(); });
}

// The channel, and the call under way.
struct StatusReader::Calls {
  // Runs one call with a context of its own that Cancel reaches.
  absl::Status Run(
      const Connection& connection,
      const std::function<grpc::Status(grpc::ClientContext*)>& call) {
    grpc::ClientContext context;
    SetDeadline(connection, &context);
    {
      MutexLock lock(&mutex);
      if (cancelled) return absl::CancelledError("told to stop");
      current = &context;
    }
    const grpc::Status status = call(&context);
    MutexLock lock(&mutex);
    current = nullptr;
    return FromGrpcStatus(status);
  }

  std::shared_ptr<grpc::Channel> channel;
  Mutex mutex;
  bool cancelled GUARDED_BY(mutex) = false;
  grpc::ClientContext* current GUARDED_BY(mutex) = nullptr;
};

StatusReader::StatusReader(const Connection& connection)
    : connection_(connection), calls_(std::make_unique<Calls>()) {}

StatusReader::~StatusReader() = default;

absl::StatusOr<ServerStatus> StatusReader::Ask() {
  if (calls_->channel == nullptr) calls_->channel = Connect(connection_);
  const auto inference = v1::Inference::NewStub(calls_->channel);
  const auto control = v1::Control::NewStub(calls_->channel);
  ServerStatus status;
  RING_RETURN_IF_ERROR(
      calls_->Run(connection_, [&](grpc::ClientContext* context) {
        return inference->GetModel(context, {}, &status.model);
      }));
  RING_RETURN_IF_ERROR(
      calls_->Run(connection_, [&](grpc::ClientContext* context) {
        return control->GetLoad(context, {}, &status.load);
      }));
  return status;
}

void StatusReader::Cancel() {
  MutexLock lock(&calls_->mutex);
  calls_->cancelled = true;
  if (calls_->current != nullptr) calls_->current->TryCancel();
}

std::string StatusText(const std::string& server, const ServerStatus& status) {
  const v1::GetLoadResponse& load = status.load;
  std::string text =
      absl::StrFormat("%s at %s: %s\n", status.model.name(), server,
                      status.serving()  ? "serving"
                      : load.draining() ? "draining"
                                        : "no worker group serves");
  absl::StrAppendFormat(&text, "  digest %.12s  context %d tokens\n",
                        status.model.digest(), status.model.context_length());
  absl::StrAppendFormat(
      &text,
      "  requests: %d running, %d of %d queued, %d finished, %d failed; %d "
      "tokens generated\n",
      load.running(), load.queued(), load.max_queued(),
      load.finished_requests(), load.failed_requests(),
      load.generated_tokens());
  for (const v1::GroupLoad& group : load.groups()) {
    absl::StrAppendFormat(
        &text,
        "  group %d%s: %s pid %d, %s, dp %d x tp %d, %d of %d sequences, %d of "
        "%d tokens\n",
        group.group_id(), group.draining() ? " (draining)" : "", group.host(),
        group.pid(), group.device(), group.dp(), group.tp(),
        group.assigned_requests(), group.max_sequences(),
        group.assigned_tokens(), group.kv_tokens());
  }
  return text;
}

std::string StatusJson(const ServerStatus& status) {
  nlohmann::ordered_json json;
  json["serving"] = status.serving();
  json["draining"] = status.load.draining();
  json["model"] = {{"name", status.model.name()},
                   {"digest", status.model.digest()},
                   {"architecture", status.model.architecture()},
                   {"context_length", status.model.context_length()}};
  json["queued"] = status.load.queued();
  json["running"] = status.load.running();
  json["max_queued"] = status.load.max_queued();
  json["finished_requests"] = status.load.finished_requests();
  json["failed_requests"] = status.load.failed_requests();
  json["generated_tokens"] = status.load.generated_tokens();
  json["uptime_us"] = status.load.uptime_us();
  json["groups"] = nlohmann::ordered_json::array();
  for (const v1::GroupLoad& group : status.load.groups()) {
    json["groups"].push_back(GroupJson(group));
  }
  return json.dump() + "\n";
}

}  // namespace ring
