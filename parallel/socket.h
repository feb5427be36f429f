// The few TCP operations that the side link needs, with deadlines.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace ring {

// A file descriptor, closed with its owner. -1: none.
class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();

  int get() const { return fd_; }

 private:
  int fd_;
};

// A numeric address, IPv4 or IPv6, and a port.
struct SocketAddress {
  std::string host;
  int port = 0;

  std::string ToString() const;
};

// The numeric addresses of this host's interfaces that are up, without
// loopback and link-local ones.
std::vector<std::string> LocalAddresses();

// The numeric addresses behind a host name or address. NOT_FOUND.
absl::StatusOr<std::vector<std::string>> Resolve(const std::string& name);

// All sockets below are non-blocking, closed on exec and send small messages
// at once.

// Listens on a free port, which goes to *address. UNAVAILABLE.
absl::StatusOr<Fd> Listen(const std::string& host, SocketAddress* address);

// The next connection, or a descriptor of -1 when none is waiting.
Fd Accept(const Fd& listener);

using SocketDeadline = std::chrono::steady_clock::time_point;

// UNAVAILABLE names the address and the reason.
absl::StatusOr<Fd> Connect(const SocketAddress& address,
                           SocketDeadline deadline);
// Sends all of `data`. UNAVAILABLE or DEADLINE_EXCEEDED.
absl::Status SendAll(const Fd& fd, const std::string& data,
                     SocketDeadline deadline);
// Receives exactly `bytes` bytes. UNAVAILABLE or DEADLINE_EXCEEDED.
absl::StatusOr<std::string> ReceiveExactly(const Fd& fd, size_t bytes,
                                           SocketDeadline deadline);

}  // namespace ring
