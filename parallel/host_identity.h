// Where a process runs, comparable between ranks.
#pragma once

#include <cstdint>
#include <string>

namespace ring {

// Equal strings mean the same thing on every rank.
struct HostIdentity {
  std::string name;               // the host's name, for people
  std::string boot;               // one running kernel
  std::string pid_namespace;      // with equal boot: can signal each other
  std::string network_namespace;  // with equal boot: share a loopback device
  int64_t pid = 0;
};

// Of this process. What the system does not tell is replaced by the host name.
HostIdentity ThisHost();

}  // namespace ring
