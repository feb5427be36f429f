// The coordinator as one object: services, port, health and the orderly end.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/served_model.h"
#include "proto/credentials.h"

namespace ring {

struct ServerOptions {
  std::string listen = "127.0.0.1:0";  // HOST:PORT; port 0: any free one
  // None: plaintext. With `ca`, clients and workers must show a certificate
  // that it has signed.
  TlsFiles tls;
  bool insecure = false;  // plaintext off loopback is allowed
  int64_t max_queued = 1024;
  // A stream that has ended and whose client does not read the rest is
  // cancelled after it.
  std::chrono::milliseconds read_patience{60000};
  // Called for Control.Drain; returns at once.
  std::function<void()> on_drain;
};

// A running gRPC server. Thread-safe.
class Server {
 public:
  // Starts to listen. Health is NOT_SERVING until a worker group joins.
  // INVALID_ARGUMENT: no HOST:PORT, plaintext off loopback, or TLS files that
  // do not belong together; NOT_FOUND: one is missing; UNAVAILABLE: the address
  // is not free.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      ServerOptions options, std::unique_ptr<const ServedModel> model);

  // Ends at once what is left.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "127.0.0.1:50051", with the port that was bound.
  const std::string& address() const;
  int port() const;

  // Stops admitting and waits for live requests until `deadline`. False when
  // some are left.
  bool Drain(std::chrono::steady_clock::time_point deadline);
  // Ends all live requests, so that a Drain that waits returns.
  void CancelAll();

 private:
  struct Parts;
  explicit Server(std::unique_ptr<Parts> parts);

  const std::unique_ptr<Parts> parts_;
};

}  // namespace ring
