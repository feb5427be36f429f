#include "coordinator/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/cluster_service.h"
#include "coordinator/control_service.h"
#include "coordinator/dispatcher.h"
#include "coordinator/inference_service.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "proto/protocol.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

// Pings that clients may send without being told off.
constexpr int kMinClientPingIntervalMs = 500;
constexpr int64_t kMaxPemBytes = 1 << 20;

struct HostPort {
  std::string host;
  int port = 0;
};

absl::StatusOr<HostPort> ParseListen(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  HostPort result;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(listen.substr(colon + 1), &result.port) ||
      result.port < 0 || result.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen ", listen, " is not HOST:PORT"));
  }
  result.host = listen.substr(0, colon);
  return result;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "[::1]" ||
         host.compare(0, 4, "127.") == 0;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(
    const ServerOptions& options, const std::string& host) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together: give both or none");
  }
  if (options.tls_cert.empty()) {
    if (!options.tls_ca.empty()) {
      return absl::InvalidArgumentError(
          "--tls-ca needs --tls-cert and --tls-key");
    }
    if (!IsLoopback(host) && !options.insecure) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--listen ", host,
          " is not a loopback address: give --tls-cert and --tls-key, or "
          "--insecure for plaintext that anybody on the way can read"));
    }
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions tls(
      options.tls_ca.empty()
          ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  RING_ASSIGN_OR_RETURN(pair.private_key,
                        ReadTextFile(options.tls_key, kMaxPemBytes));
  RING_ASSIGN_OR_RETURN(pair.cert_chain,
                        ReadTextFile(options.tls_cert, kMaxPemBytes));
  tls.pem_key_cert_pairs.push_back(std::move(pair));
  if (!options.tls_ca.empty()) {
    RING_ASSIGN_OR_RETURN(tls.pem_root_certs,
                          ReadTextFile(options.tls_ca, kMaxPemBytes));
  }
  return grpc::SslServerCredentials(tls);
}

void SetArguments(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder->SetMaxSendMessageSize(kMaxMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              kKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      kMinClientPingIntervalMs);
  // Two coordinators never share a port by accident.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

}  // namespace

// Members are destroyed from the last to the first: the server goes before
// what its callbacks use.
struct Server::Parts {
  Parts(ServerOptions server_options,
        std::unique_ptr<const ServedModel> served_model)
      : options(std::move(server_options)),
        model(std::move(served_model)),
        dispatcher(
            {.max_queued = options.max_queued,
             .model_name = model->name,
             .num_token_ids = model->num_token_ids,
             .on_serving = [this](bool serving) { SetHealth(serving); }}),
        inference(model.get(), &dispatcher),
        control(&dispatcher, options.on_drain),
        cluster(model->digest, &dispatcher) {}

  // gRPC's health service knows "" and the public services.
  void SetHealth(bool serving) {
    grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
    for (const char* name : {"", "ring.v1.Inference", "ring.v1.Control"}) {
      health->SetServingStatus(name, serving);
    }
  }

  const ServerOptions options;
  const std::unique_ptr<const ServedModel> model;
  Dispatcher dispatcher;
  InferenceService inference;
  ControlService control;
  ClusterService cluster;
  std::string address;
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    ServerOptions options, std::unique_ptr<const ServedModel> model) {
  RING_ASSIGN_OR_RETURN(const HostPort listen, ParseListen(options.listen));
  RING_ASSIGN_OR_RETURN(
      const std::shared_ptr<grpc::ServerCredentials> credentials,
      MakeCredentials(options, listen.host));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  auto parts = std::make_unique<Parts>(std::move(options), std::move(model));
  grpc::ServerBuilder builder;
  SetArguments(&builder);
  builder.AddListeningPort(parts->options.listen, credentials, &parts->port);
  builder.RegisterService(&parts->inference);
  builder.RegisterService(&parts->control);
  builder.RegisterService(&parts->cluster);
  parts->server = builder.BuildAndStart();
  if (parts->server == nullptr || parts->port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", parts->options.listen,
        ": the address is in use or not of this host (or the TLS files are "
        "not valid)"));
  }
  parts->address = absl::StrCat(listen.host, ":", parts->port);
  parts->SetHealth(false);
  return std::unique_ptr<Server>(new Server(std::move(parts)));
}

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Server::~Server() {
  parts_->dispatcher.Shutdown(absl::UnavailableError(
      "the coordinator has shut down: send the request to another one, or "
      "again when it is back"));
  // Streams that a client does not read get a moment to end by themselves.
  parts_->server->Shutdown(std::chrono::system_clock::now() +
                           std::chrono::seconds(1));
  parts_->server->Wait();
}

const std::string& Server::address() const { return parts_->address; }

int Server::port() const { return parts_->port; }

bool Server::Drain(std::chrono::steady_clock::time_point deadline) {
  parts_->dispatcher.Drain();
  return parts_->dispatcher.WaitUntilIdle(deadline);
}

void Server::CancelAll() {
  parts_->dispatcher.CancelAll(
      absl::UnavailableError("the coordinator was told to stop at once"));
}

}  // namespace ring
