// HOST:PORT, as command lines name a place on the network.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ring {

struct HostPort {
  std::string host;  // name or address; of IPv6 without the brackets
  int port = 0;

  // With brackets around an IPv6 address.
  std::string ToString() const;
};

// "node7:7000", "127.0.0.1:7000", "[::1]:7000". INVALID_ARGUMENT says what of
// `text` is wrong: no port or one outside [min_port, 65535], no host, an IPv6
// address without brackets. 0 as `min_port` allows "any free port".
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text,
                                       int min_port = 1);

}  // namespace ring
