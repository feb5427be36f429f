// TLS between the programs: the files that flags name, checked once, and the
// credentials that are made of them.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace ring {

// Paths of PEM files; empty: not given.
struct TlsFiles {
  std::string ca;    // authority that has signed the peer's certificate
  std::string cert;  // certificate to show to the peer
  std::string key;   // its key
};

// What was in the files; empty where none was given.
struct TlsPem {
  std::string ca;
  std::string cert;
  std::string key;
};

// Of a client: nothing for plaintext, `ca` for TLS, all three for mutual TLS.
// Of a server: nothing, `cert` and `key`, or all three. INVALID_ARGUMENT names
// the flags (--tls-ca, --tls-cert, --tls-key) that do not go together, or a
// file that is not PEM; NOT_FOUND one that is missing.
absl::StatusOr<TlsPem> ReadClientTls(const TlsFiles& files);
absl::StatusOr<TlsPem> ReadServerTls(const TlsFiles& files);

// REQUIRES: `pem` was read for this side.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(
    const TlsPem& pem);
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    const TlsPem& pem);

}  // namespace ring
