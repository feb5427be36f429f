#include "kernels/base/host_port.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ring {
namespace {

constexpr int kMaxPort = 65535;

absl::Status Wrong(absl::string_view text, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is not HOST:PORT: ", what));
}

}  // namespace

std::string HostPort::ToString() const {
  return absl::StrContains(host, ':') ? absl::StrCat("[", host, "]:", port)
                                      : absl::StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text, int min_port) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return Wrong(text, "it has no port");
  absl::string_view host = text.substr(0, colon);
  const absl::string_view digits = text.substr(colon + 1);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return Wrong(text, "an IPv6 address needs brackets, as in [::1]:7000");
  }
  if (host.empty()) return Wrong(text, "it has no host");
  if (absl::StrContains(host, '/') || absl::StrContains(host, ' ')) {
    return Wrong(text, absl::StrCat("\"", host, "\" is no host"));
  }
  HostPort result;
  result.host = std::string(host);
  // SimpleAtoi takes signs and spaces.
  const bool number =
      digits.find_first_not_of("0123456789") == absl::string_view::npos &&
      absl::SimpleAtoi(digits, &result.port);
  if (!number || result.port < min_port || result.port > kMaxPort) {
    return Wrong(text,
                 absl::StrCat("the port \"", digits, "\" is no number in [",
                              min_port, ", ", kMaxPort, "]"));
  }
  return result;
}

}  // namespace ring
