// ring status: what is served, by whom, and how busy it is.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/connection.h"
#include "coordinator/cli/generation.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {
namespace {

struct ServerStatus {
  v1::GetModelResponse model;
  v1::GetLoadResponse load;

  // A group takes requests.
  bool serving() const {
    return !load.draining() &&
           std::any_of(load.groups().begin(), load.groups().end(),
                       [](const auto& group) { return !group.draining(); });
  }
};

absl::StatusOr<ServerStatus> Ask(const Connection& connection) {
  const std::shared_ptr<grpc::Channel> channel = Connect(connection);
  grpc::ClientContext model_context;
  grpc::ClientContext load_context;
  SetDeadline(connection, &model_context);
  SetDeadline(connection, &load_context);
  ServerStatus status;
  RING_RETURN_IF_ERROR(FromGrpcStatus(v1::Inference::NewStub(channel)->GetModel(
      &model_context, {}, &status.model)));
  RING_RETURN_IF_ERROR(FromGrpcStatus(
      v1::Control::NewStub(channel)->GetLoad(&load_context, {}, &status.load)));
  return status;
}

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

void PrintJson(const ServerStatus& status) {
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
  std::printf("%s\n", json.dump().c_str());
}

void PrintText(const StatusFlags& flags, const ServerStatus& status) {
  const v1::GetLoadResponse& load = status.load;
  std::printf("%s at %s: %s\n", status.model.name().c_str(),
              flags.connection.server.c_str(),
              status.serving()  ? "serving"
              : load.draining() ? "draining"
                                : "no worker group serves");
  std::printf("  digest %.12s  context %lld tokens\n",
              status.model.digest().c_str(),
              static_cast<long long>(status.model.context_length()));
  std::printf(
      "  requests: %lld running, %lld of %lld queued, %lld finished, "
      "%lld failed; %lld tokens generated\n",
      static_cast<long long>(load.running()),
      static_cast<long long>(load.queued()),
      static_cast<long long>(load.max_queued()),
      static_cast<long long>(load.finished_requests()),
      static_cast<long long>(load.failed_requests()),
      static_cast<long long>(load.generated_tokens()));
  for (const v1::GroupLoad& group : load.groups()) {
    std::printf(
        "  group %lld%s: %s pid %lld, %s, dp %d x tp %d, %lld of %lld "
        "sequences, %lld of %lld tokens\n",
        static_cast<long long>(group.group_id()),
        group.draining() ? " (draining)" : "", group.host().c_str(),
        static_cast<long long>(group.pid()), group.device().c_str(), group.dp(),
        group.tp(), static_cast<long long>(group.assigned_requests()),
        static_cast<long long>(group.max_sequences()),
        static_cast<long long>(group.assigned_tokens()),
        static_cast<long long>(group.kv_tokens()));
  }
}

}  // namespace

int RunStatus(const StatusFlags& flags) {
  const absl::StatusOr<Connection> connection =
      ReadConnection(flags.connection);
  if (!connection.ok()) return ReportMistake("status", connection.status());
  const absl::StatusOr<ServerStatus> status = Ask(*connection);
  if (!status.ok()) {
    return ReportFailure("status", *connection, status.status());
  }
  if (flags.json) {
    PrintJson(*status);
  } else {
    PrintText(flags, *status);
  }
  if (const absl::Status written = CheckWritten(); !written.ok()) {
    return ReportFailure("status", *connection, written);
  }
  return status->serving() ? 0 : 1;
}

}  // namespace ring
