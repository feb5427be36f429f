#include "parallel/host_identity.h"

#include <unistd.h>

#include <fstream>

namespace ring {
namespace {

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "unknown-host";
  return name;
}

// "net:[4026531840]"
std::string NamespaceOf(const char* link, const std::string& otherwise) {
  char target[128];
  const ssize_t n = readlink(link, target, sizeof(target));
  return n > 0 ? std::string(target, n) : otherwise;
}

}  // namespace

HostIdentity ThisHost() {
  HostIdentity host;
  host.name = HostName();
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  if (!(boot >> host.boot)) host.boot = host.name;
  host.pid_namespace = NamespaceOf("/proc/self/ns/pid", host.name);
  host.network_namespace = NamespaceOf("/proc/self/ns/net", host.name);
  host.pid = getpid();
  return host;
}

}  // namespace ring
