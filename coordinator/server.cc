#include "coordinator/server.h"

#include <arpa/inet.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/cluster_service.h"
#include "coordinator/control_service.h"
#include "coordinator/dispatcher.h"
#include "coordinator/inference_service.h"
#include "coordinator/parse_failures.h"
#include "kernels/base/host_port.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"
#include "proto/credentials.h"
#include "proto/protocol.h"

namespace ring {
namespace {

// Pings that clients may send without being told off.
constexpr int kMinClientPingIntervalMs = 500;

// Names but "localhost" may mean any address: "127.example.com" is one.
bool IsLoopback(const std::string& host) {
  in_addr v4{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    return ntohl(v4.s_addr) >> 24 == 127;
  }
  in6_addr v6{};
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) {
    return IN6_IS_ADDR_LOOPBACK(&v6);
  }
  return host == "localhost";
}

absl::StatusOr<HostPort> ParseListen(const ServerOptions& options) {
  absl::StatusOr<HostPort> listen =
      ParseHostPort(options.listen, /*min_port=*/0);
  if (!listen.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen ", listen.status().message()));
  }
  if (!IsLoopback(listen->host) && options.tls.cert.empty() &&
      !options.insecure) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen ", options.listen,
        " is not a loopback address: give --tls-cert and --tls-key, or "
        "--insecure for plaintext that anybody on the way can read"));
  }
  return listen;
}

// Why nobody can listen there, as far as the system tells.
std::string WhyNotListen(const HostPort& listen) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int unknown = getaddrinfo(
      listen.host.c_str(), absl::StrCat(listen.port).c_str(), &hints, &found);
  if (unknown != 0) {
    return absl::StrCat(gai_strerror(unknown),
                        ": give a name or address of this host");
  }
  const int descriptor =
      socket(found->ai_family, found->ai_socktype, found->ai_protocol);
  const int on = 1;  // as gRPC: only a program that listens is in the way
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const int error = descriptor >= 0 && bind(descriptor, found->ai_addr,
                                            found->ai_addrlen) == 0
                        ? 0
                        : errno;
  if (descriptor >= 0) close(descriptor);
  freeaddrinfo(found);
  switch (error) {
    case 0:
      return "are the TLS files a certificate and its key?";
    case EADDRINUSE:
      return "another program listens there: end it, or give another port "
             "(0: any free one)";
    case EADDRNOTAVAIL:
      return "this host has no such address";
    default:
      return std::generic_category().message(error);
  }
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
        inference(model.get(), &dispatcher, options.read_patience),
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
  RING_ASSIGN_OR_RETURN(HostPort listen, ParseListen(options));
  RING_ASSIGN_OR_RETURN(const TlsPem tls, ReadServerTls(options.tls));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  auto parts = std::make_unique<Parts>(std::move(options), std::move(model));
  grpc::ServerBuilder builder;
  SetArguments(&builder);
  std::vector<
      std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
      interceptors;
  interceptors.push_back(ExplainParseFailures());
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  builder.AddListeningPort(listen.ToString(), MakeServerCredentials(tls),
                           &parts->port);
  builder.RegisterService(&parts->inference);
  builder.RegisterService(&parts->control);
  builder.RegisterService(&parts->cluster);
  parts->server = builder.BuildAndStart();
  if (parts->server == nullptr || parts->port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", listen.ToString(), ": ", WhyNotListen(listen)));
  }
  listen.port = parts->port;
  parts->address = listen.ToString();
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
