#include "coordinator/cli/connection.h"

#include <grpcpp/grpcpp.h>

#include <cstdio>

#include "kernels/base/status_macros.h"
#include "proto/protocol.h"
#include "proto/status.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;

// What usually helps against a status.
const char* Advice(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnavailable:
      return "is ring-coordinator running there (ring status), and has a "
             "ring-worker joined it?";
    case absl::StatusCode::kDeadlineExceeded:
      return "give it more time with --timeout, or fewer tokens with "
             "--max-tokens";
    case absl::StatusCode::kResourceExhausted:
      return "the server is busy: try again in a moment";
    case absl::StatusCode::kInvalidArgument:
      return "change the option that the message names";
    case absl::StatusCode::kUnimplemented:
      return "is this a ring-coordinator of the same release?";
    default:
      return "the coordinator's log has more";
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(
    const ConnectionFlags& flags) {
  std::shared_ptr<grpc::ChannelCredentials> credentials =
      grpc::InsecureChannelCredentials();
  if (!flags.tls_ca.empty()) {
    grpc::SslCredentialsOptions tls;
    RING_ASSIGN_OR_RETURN(tls.pem_root_certs,
                          ReadTextFile(flags.tls_ca, kMaxPemBytes));
    if (!flags.tls_cert.empty()) {
      RING_ASSIGN_OR_RETURN(tls.pem_cert_chain,
                            ReadTextFile(flags.tls_cert, kMaxPemBytes));
      RING_ASSIGN_OR_RETURN(tls.pem_private_key,
                            ReadTextFile(flags.tls_key, kMaxPemBytes));
    }
    credentials = grpc::SslCredentials(tls);
  } else if (!flags.tls_cert.empty() || !flags.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key need --tls-ca");
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(flags.server, credentials, arguments);
}

int ReportFailure(const std::string& what, const ConnectionFlags& flags,
                  const absl::Status& status) {
  std::fprintf(stderr, "ring: %s at %s failed: %s: %s\n  try: %s\n",
               what.c_str(), flags.server.c_str(), CodeName(status.code()),
               std::string(status.message()).c_str(), Advice(status.code()));
  return 1;
}

}  // namespace ring
