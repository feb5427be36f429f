#include "parallel/side_link_bootstrap.h"

#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/base/log.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

// Secrets of one bootstrap: the caller proves that it belongs to the group,
// then the leader does.
constexpr size_t kTokenBytes = 32;
constexpr size_t kRankDigits = 8;
constexpr size_t kCallBytes = kTokenBytes + kRankDigits;

struct Invitation {
  std::string call_token;
  std::string answer_token;
  std::vector<SocketAddress> addresses;
};

absl::StatusOr<std::string> NewToken() {
  char random[kTokenBytes / 2];
  if (getrandom(random, sizeof(random), 0) != ssize_t{sizeof(random)}) {
    return absl::InternalError("the system gives no random bytes");
  }
  return absl::BytesToHexString(absl::string_view(random, sizeof(random)));
}

std::string Encode(const HostIdentity& host) {
  return absl::StrJoin({host.name, host.boot, host.pid_namespace,
                        host.network_namespace, std::to_string(host.pid)},
                       "\n");
}

absl::StatusOr<HostIdentity> DecodeHost(const std::string& text) {
  const std::vector<std::string> fields = absl::StrSplit(text, '\n');
  HostIdentity host;
  if (fields.size() != 5 || !absl::SimpleAtoi(fields[4], &host.pid)) {
    return absl::InternalError("a rank describes its host in another way");
  }
  host.name = fields[0];
  host.boot = fields[1];
  host.pid_namespace = fields[2];
  host.network_namespace = fields[3];
  return host;
}

// An error travels in the invitation's place, so that all ranks return it.
std::string Encode(const absl::StatusOr<Invitation>& invitation) {
  if (!invitation.ok()) {
    return absl::StrCat("error\n", invitation.status().message());
  }
  std::string text =
      absl::StrCat(invitation->call_token, "\n", invitation->answer_token);
  for (const SocketAddress& address : invitation->addresses) {
    absl::StrAppend(&text, "\n", address.host, "\n", address.port);
  }
  return text;
}

absl::StatusOr<Invitation> DecodeInvitation(const std::string& text) {
  const std::vector<std::string> fields = absl::StrSplit(text, '\n');
  if (fields[0] == "error") {
    return absl::UnavailableError(absl::StrCat(
        "the leader has no side link: ", fields.size() > 1 ? fields[1] : ""));
  }
  if (fields.size() < 4 || fields.size() % 2 != 0) {
    return absl::InternalError("the leader invites in another way");
  }
  Invitation invitation{fields[0], fields[1], {}};
  for (size_t i = 2; i < fields.size(); i += 2) {
    SocketAddress address{fields[i], 0};
    if (!absl::SimpleAtoi(fields[i + 1], &address.port)) {
      return absl::InternalError("the leader invites to no port");
    }
    invitation.addresses.push_back(std::move(address));
  }
  return invitation;
}

bool ShareLoopback(const std::vector<HostIdentity>& hosts) {
  return std::all_of(hosts.begin(), hosts.end(), [&](const HostIdentity& h) {
    return h.boot == hosts[0].boot &&
           h.network_namespace == hosts[0].network_namespace;
  });
}

absl::StatusOr<Invitation> OpenListeners(const std::vector<HostIdentity>& hosts,
                                         const std::string& listen_address,
                                         std::vector<Fd>* listeners) {
  std::vector<std::string> candidates = {"127.0.0.1"};
  if (!listen_address.empty()) {
    RING_ASSIGN_OR_RETURN(candidates, Resolve(listen_address));
  } else if (!ShareLoopback(hosts)) {
    candidates = LocalAddresses();
  }
  Invitation invitation;
  RING_ASSIGN_OR_RETURN(invitation.call_token, NewToken());
  RING_ASSIGN_OR_RETURN(invitation.answer_token, NewToken());
  absl::Status last = absl::UnavailableError(absl::StrCat(
      "host ", hosts[0].name, " has no address that other hosts can reach"));
  for (const std::string& host : candidates) {
    SocketAddress address;
    absl::StatusOr<Fd> listener = Listen(host, &address);
    if (!listener.ok()) {
      last = listener.status();
      continue;
    }
    listeners->push_back(*std::move(listener));
    invitation.addresses.push_back(std::move(address));
  }
  if (listeners->empty()) return last;
  return invitation;
}

// --- The leader's side: everybody calls. ---

// A connection that has not proved yet who it is.
struct Caller {
  Fd fd;
  std::string call;  // at most kCallBytes
};

class Reception {
 public:
  Reception(const std::vector<HostIdentity>& hosts,
            const Invitation& invitation, std::vector<Fd> listeners)
      : hosts_(hosts),
        invitation_(invitation),
        listeners_(std::move(listeners)),
        links_(hosts.size() - 1) {}

  absl::StatusOr<std::vector<Fd>> Run(Clock::time_point deadline) {
    while (missing() > 0) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - Clock::now());
      if (left.count() <= 0) return Late();
      std::vector<pollfd> entries;
      for (const Fd& l : listeners_) entries.push_back({l.get(), POLLIN, 0});
      for (const Caller& c : callers_)
        entries.push_back({c.fd.get(), POLLIN, 0});
      poll(entries.data(), entries.size(), static_cast<int>(left.count()) + 1);
      RING_RETURN_IF_ERROR(HearCallers(deadline));
      AcceptCallers();
    }
    return std::move(links_);
  }

 private:
  size_t missing() const {
    return std::count_if(links_.begin(), links_.end(),
                         [](const Fd& fd) { return fd.get() < 0; });
  }

  // Strangers may hold a few connections open, never many.
  void AcceptCallers() {
    for (const Fd& listener : listeners_) {
      Fd fd = Accept(listener);
      if (fd.get() < 0) continue;
      if (callers_.size() < 2 * hosts_.size() + 16) {
        callers_.push_back({std::move(fd), {}});
      }
    }
  }

  absl::Status HearCallers(Clock::time_point deadline) {
    std::vector<Caller> undecided;
    for (Caller& caller : callers_) {
      char bytes[kCallBytes];
      const ssize_t n =
          recv(caller.fd.get(), bytes, kCallBytes - caller.call.size(), 0);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) continue;
      if (n > 0) caller.call.append(bytes, n);
      if (caller.call.size() < kCallBytes) {
        undecided.push_back(std::move(caller));
        continue;
      }
      RING_RETURN_IF_ERROR(Admit(std::move(caller), deadline));
    }
    callers_ = std::move(undecided);
    return absl::OkStatus();
  }

  absl::Status Admit(Caller caller, Clock::time_point deadline) {
    size_t rank = 0;
    const bool known =
        caller.call.compare(0, kTokenBytes, invitation_.call_token) == 0 &&
        absl::SimpleAtoi(caller.call.substr(kTokenBytes), &rank) && rank >= 1 &&
        rank <= links_.size() && links_[rank - 1].get() < 0;
    if (!known) {
      LogWarning("side link dropped a connection that is not of this group");
      return absl::OkStatus();
    }
    RING_RETURN_IF_ERROR(
        SendAll(caller.fd, invitation_.answer_token, deadline));
    links_[rank - 1] = std::move(caller.fd);
    return absl::OkStatus();
  }

  absl::Status Late() const {
    std::vector<std::string> absent;
    for (size_t i = 0; i < links_.size(); ++i) {
      if (links_[i].get() < 0) {
        absent.push_back(
            absl::StrCat("rank ", i + 1, " on ", hosts_[i + 1].name));
      }
    }
    return absl::DeadlineExceededError(
        absl::StrCat("no side link from ", absl::StrJoin(absent, ", "), " to ",
                     invitation_.addresses[0].ToString()));
  }

  const std::vector<HostIdentity>& hosts_;
  const Invitation& invitation_;
  const std::vector<Fd> listeners_;
  std::vector<Caller> callers_;
  std::vector<Fd> links_;  // of rank i + 1
};

// --- A follower's side: it calls. ---

absl::StatusOr<Fd> Call(const SocketAddress& address,
                        const Invitation& invitation, int rank,
                        Clock::time_point deadline) {
  RING_ASSIGN_OR_RETURN(Fd fd, Connect(address, deadline));
  const std::string call =
      absl::StrCat(invitation.call_token, absl::Dec(rank, absl::kZeroPad8));
  RING_RETURN_IF_ERROR(SendAll(fd, call, deadline));
  RING_ASSIGN_OR_RETURN(const std::string answer,
                        ReceiveExactly(fd, kTokenBytes, deadline));
  if (answer != invitation.answer_token) {
    return absl::UnavailableError(absl::StrCat(
        address.ToString(), " answers, but is not this group's leader"));
  }
  return fd;
}

absl::StatusOr<Fd> CallLeader(const Invitation& invitation, int rank,
                              Clock::time_point deadline) {
  std::vector<std::string> reasons;
  const auto count = static_cast<int>(invitation.addresses.size());
  for (int i = 0; i < count; ++i) {
    // What is left of the time is shared out, so that one address that
    // swallows packets does not eat all of it.
    const Clock::time_point now = Clock::now();
    absl::StatusOr<Fd> fd = Call(invitation.addresses[i], invitation, rank,
                                 now + (deadline - now) / (count - i));
    if (fd.ok()) return fd;
    reasons.push_back(absl::StrCat(invitation.addresses[i].ToString(), ": ",
                                   fd.status().message()));
  }
  return absl::UnavailableError(
      absl::StrCat("rank ", rank, " cannot reach the leader's side link (",
                   absl::StrJoin(reasons, "; "), ")"));
}

}  // namespace

absl::StatusOr<SideLinkSockets> ConnectSideLinks(
    ControlChannel* control, const SideLink::Options& options) {
  SideLinkSockets sockets;
  HostIdentity self = ThisHost();
  if (!options.host_name.empty()) self.name = options.host_name;
  std::vector<std::string> hosts;
  RING_RETURN_IF_ERROR(control->AllGather(Encode(self), &hosts));
  for (const std::string& text : hosts) {
    RING_ASSIGN_OR_RETURN(HostIdentity host, DecodeHost(text));
    sockets.hosts.push_back(std::move(host));
  }
  if (control->size() == 1) return sockets;

  std::string message;
  std::vector<Fd> listeners;
  if (control->rank() == 0) {
    message = Encode(
        OpenListeners(sockets.hosts, options.listen_address, &listeners));
  }
  RING_RETURN_IF_ERROR(control->Broadcast(&message));
  RING_ASSIGN_OR_RETURN(const Invitation invitation, DecodeInvitation(message));
  const Clock::time_point deadline = Clock::now() + options.connect_deadline;
  if (control->rank() == 0) {
    Reception reception(sockets.hosts, invitation, std::move(listeners));
    RING_ASSIGN_OR_RETURN(sockets.links, reception.Run(deadline));
  } else {
    RING_ASSIGN_OR_RETURN(Fd link,
                          CallLeader(invitation, control->rank(), deadline));
    sockets.links.push_back(std::move(link));
  }
  return sockets;
}

}  // namespace ring
