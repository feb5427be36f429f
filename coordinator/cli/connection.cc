#include "coordinator/cli/connection.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/retry_after.h"
#include "kernels/base/status_macros.h"
#include "proto/protocol.h"
#include "proto/status.h"

namespace ring {
namespace {

// A coordinator that is there says itself what is missing: a worker group, or
// one that it has lost, or more time to run.
bool SaidByCoordinator(absl::string_view message) {
  return absl::StartsWith(message, "no worker group") ||
         absl::StartsWith(message, "worker group ") ||
         absl::StartsWith(message, "the last worker group ") ||
         absl::StartsWith(message, "the coordinator ");
}

// gRPC tells why a connection failed in words alone.
const char* AdviceToConnect(const Connection& connection,
                            absl::string_view message) {
  const bool tls = !connection.tls.ca.empty();
  if (tls && absl::StrContains(message, "handshake")) {
    return "does the server use TLS, with a certificate that the authority of "
           "--tls-ca has signed for this host, and does it ask for --tls-cert?";
  }
  if (!tls && (absl::StrContains(message, "Socket closed") ||
               absl::StrContains(message, "reset by peer"))) {
    return "does the server use TLS? Then --tls-ca names its authority";
  }
  return "is ring-coordinator running there?";
}

// What usually helps against a status; empty: nothing is known to.
std::string Advice(const Connection& connection, const absl::Status& status) {
  const absl::string_view message = status.message();
  if (const auto retry_after = RetryAfter(status)) {
    return absl::StrCat("the server is busy: again in ",
                        static_cast<double>(retry_after->count()) * 1e-3, " s");
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return SaidByCoordinator(message) ? ""
                                        : AdviceToConnect(connection, message);
    case absl::StatusCode::kDeadlineExceeded:
      return "give it more time with --timeout, or fewer tokens with "
             "--max-tokens";
    case absl::StatusCode::kResourceExhausted:
      return absl::StrContains(message, "larger than max")
                 ? "a message may have 64 MB at most: send a shorter prompt"
                 : "";
    case absl::StatusCode::kInvalidArgument:
      return "change the option that the message names";
    case absl::StatusCode::kAlreadyExists:
      return "give another --request-id, or none";
    case absl::StatusCode::kUnimplemented:
      return "is this a ring-coordinator of the same release?";
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kFailedPrecondition:
      return "";
    default:
      return "the coordinator's log has more";
  }
}

}  // namespace

absl::StatusOr<Connection> ReadConnection(const ConnectionFlags& flags) {
  Connection connection{flags.server, {}, flags.timeout_s};
  RING_ASSIGN_OR_RETURN(connection.tls, ReadClientTls(flags.tls));
  return connection;
}

std::shared_ptr<grpc::Channel> Connect(const Connection& connection) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(
      connection.server, MakeChannelCredentials(connection.tls), arguments);
}

void SetDeadline(const Connection& connection, grpc::ClientContext* context) {
  if (connection.timeout_s <= 0) return;
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::milliseconds(
                            static_cast<int64_t>(connection.timeout_s * 1000)));
}

int ReportMistake(const std::string& command, const absl::Status& status) {
  std::fprintf(stderr, "ring: %s: %s\n", command.c_str(),
               std::string(status.message()).c_str());
  return 2;
}

int ReportFailure(const std::string& command, const Connection& connection,
                  const absl::Status& status) {
  std::fprintf(stderr, "ring: %s at %s failed: %s: %s\n", command.c_str(),
               connection.server.c_str(), CodeName(status.code()),
               std::string(status.message()).c_str());
  const std::string advice = Advice(connection, status);
  if (!advice.empty()) std::fprintf(stderr, "  try: %s\n", advice.c_str());
  return 1;
}

}  // namespace ring
