#include "parallel/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

absl::Status ErrnoStatus(const std::string& doing) {
  return absl::UnavailableError(
      absl::StrCat(doing, ": ", std::strerror(errno)));
}

// Waits until `events` are possible on the socket.
absl::Status WaitFor(const Fd& fd, short events, SocketDeadline deadline,
                     const char* doing) {
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      return absl::DeadlineExceededError(
          absl::StrCat("no answer in time while ", doing));
    }
    pollfd entry{fd.get(), events, 0};
    const int ready = poll(&entry, 1, static_cast<int>(left.count()) + 1);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus(doing);
  }
}

void SetNoDelay(const Fd& fd) {
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

struct AddressList {
  addrinfo* first = nullptr;
  ~AddressList() {
    if (first != nullptr) freeaddrinfo(first);
  }
};

absl::Status Lookup(const std::string& host, int port, int flags,
                    AddressList* list) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(),
                                &hints, &list->first);
  if (error == 0) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("cannot resolve '", host, "': ", gai_strerror(error)));
}

std::string NumericHost(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST];
  const int error = getnameinfo(address, length, host, sizeof(host), nullptr, 0,
                                NI_NUMERICHOST);
  return error == 0 ? host : "";
}

Fd NewSocket(int family) {
  return Fd(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Fd::~Fd() {
  if (fd_ >= 0) close(fd_);
}

std::string SocketAddress::ToString() const {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", host, "]:", port)
            : absl::StrCat(host, ":", port);
}

std::vector<std::string> LocalAddresses() {
  std::vector<std::string> addresses;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return addresses;
  for (const ifaddrs* i = interfaces; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0 ||
        (i->ifa_flags & IFF_LOOPBACK) != 0) {
      continue;
    }
    std::string host;
    if (i->ifa_addr->sa_family == AF_INET) {
      host = NumericHost(i->ifa_addr, sizeof(sockaddr_in));
    } else if (i->ifa_addr->sa_family == AF_INET6) {
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) continue;
      host = NumericHost(i->ifa_addr, sizeof(sockaddr_in6));
    }
    if (!host.empty()) addresses.push_back(host);
  }
  freeifaddrs(interfaces);
  return addresses;
}

absl::StatusOr<std::vector<std::string>> Resolve(const std::string& name) {
  AddressList list;
  RING_RETURN_IF_ERROR(Lookup(name, 0, AI_PASSIVE, &list));
  std::vector<std::string> hosts;
  for (const addrinfo* a = list.first; a != nullptr; a = a->ai_next) {
    const std::string host = NumericHost(a->ai_addr, a->ai_addrlen);
    if (!host.empty()) hosts.push_back(host);
  }
  return hosts;
}

absl::StatusOr<Fd> Listen(const std::string& host, SocketAddress* address) {
  AddressList list;
  RING_RETURN_IF_ERROR(Lookup(host, 0, AI_NUMERICHOST | AI_PASSIVE, &list));
  const addrinfo* const a = list.first;
  Fd fd = NewSocket(a->ai_family);
  const std::string doing = absl::StrCat("cannot listen on ", host);
  if (fd.get() < 0 || bind(fd.get(), a->ai_addr, a->ai_addrlen) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0) {
    return ErrnoStatus(doing);
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) !=
      0) {
    return ErrnoStatus(doing);
  }
  address->host = host;
  address->port =
      bound.ss_family == AF_INET6
          ? ntohs(reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port)
          : ntohs(reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
  return fd;
}

Fd Accept(const Fd& listener) {
  Fd fd(
      accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd.get() >= 0) SetNoDelay(fd);
  return fd;
}

absl::StatusOr<Fd> Connect(const SocketAddress& address,
                           SocketDeadline deadline) {
  AddressList list;
  RING_RETURN_IF_ERROR(
      Lookup(address.host, address.port, AI_NUMERICHOST, &list));
  Fd fd = NewSocket(list.first->ai_family);
  const std::string doing =
      absl::StrCat("cannot connect to ", address.ToString());
  if (fd.get() < 0) return ErrnoStatus(doing);
  if (connect(fd.get(), list.first->ai_addr, list.first->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return ErrnoStatus(doing);
    RING_RETURN_IF_ERROR(WaitFor(fd, POLLOUT, deadline, doing.c_str()));
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
      errno = error;
      return ErrnoStatus(doing);
    }
  }
  SetNoDelay(fd);
  return fd;
}

absl::Status SendAll(const Fd& fd, const std::string& data,
                     SocketDeadline deadline) {
  for (size_t sent = 0; sent < data.size();) {
    const ssize_t n =
        send(fd.get(), data.data() + sent, data.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += n;
    } else if (errno == EAGAIN) {
      RING_RETURN_IF_ERROR(WaitFor(fd, POLLOUT, deadline, "sending"));
    } else if (errno != EINTR) {
      return ErrnoStatus("sending");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReceiveExactly(const Fd& fd, size_t bytes,
                                           SocketDeadline deadline) {
  std::string data(bytes, '\0');
  for (size_t received = 0; received < bytes;) {
    const ssize_t n =
        recv(fd.get(), data.data() + received, bytes - received, 0);
    if (n > 0) {
      received += n;
    } else if (n == 0) {
      return absl::UnavailableError("the other side closed the connection");
    } else if (errno == EAGAIN) {
      RING_RETURN_IF_ERROR(WaitFor(fd, POLLIN, deadline, "receiving"));
    } else if (errno != EINTR) {
      return ErrnoStatus("receiving");
    }
  }
  return data;
}

}  // namespace ring
