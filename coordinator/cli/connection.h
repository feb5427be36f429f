// How the commands of `ring` reach a coordinator.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/cli/flags.h"
#include "proto/credentials.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace ring {

// A server and how to talk to it: flags that have been checked.
struct Connection {
  std::string server;    // HOST:PORT
  TlsPem tls;            // no authority: plaintext
  double timeout_s = 0;  // of a call; 0: none
};

// Reads the TLS files; starts nothing. Errors as ReadClientTls.
absl::StatusOr<Connection> ReadConnection(const ConnectionFlags& flags);

// A channel; nothing is sent yet.
std::shared_ptr<grpc::Channel> Connect(const Connection& connection);

// Gives a call of this connection its timeout, from now.
void SetDeadline(const Connection& connection, grpc::ClientContext* context);

// Prints what is wrong with the command line or a file that it names; returns
// the exit code, 2. `command`: "generate".
int ReportMistake(const std::string& command, const absl::Status& status);

// Prints what failed, at which address and what to try; returns the exit code
// of a failed command, 1.
int ReportFailure(const std::string& command, const Connection& connection,
                  const absl::Status& status);

}  // namespace ring
