#include "proto/credentials.h"

#include <grpcpp/grpcpp.h>

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"

namespace ring {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;
constexpr char kCertificate[] = "CERTIFICATE-----";
constexpr char kPrivateKey[] = "PRIVATE KEY-----";

// The file that `flag` names, which has a block that ends its first line with
// `label`; empty without a file.
absl::StatusOr<std::string> ReadPem(absl::string_view flag,
                                    const std::string& path,
                                    absl::string_view label) {
  if (path.empty()) return "";
  const absl::StatusOr<std::string> text = ReadTextFile(path, kMaxPemBytes);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        absl::StrCat(flag, ": ", text.status().message()));
  }
  if (!absl::StrContains(*text, "-----BEGIN ") ||
      !absl::StrContains(*text, label)) {
    return absl::InvalidArgumentError(absl::StrCat(
        flag, ": ", path, " is no PEM file with a -----BEGIN ... ", label));
  }
  return text;
}

absl::StatusOr<TlsPem> Read(const TlsFiles& files) {
  if (files.cert.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together: give both or none");
  }
  TlsPem pem;
  RING_ASSIGN_OR_RETURN(pem.ca, ReadPem("--tls-ca", files.ca, kCertificate));
  RING_ASSIGN_OR_RETURN(pem.cert,
                        ReadPem("--tls-cert", files.cert, kCertificate));
  RING_ASSIGN_OR_RETURN(pem.key, ReadPem("--tls-key", files.key, kPrivateKey));
  return pem;
}

}  // namespace

absl::StatusOr<TlsPem> ReadClientTls(const TlsFiles& files) {
  if (files.ca.empty() && !(files.cert.empty() && files.key.empty())) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key need --tls-ca, the authority of the server's "
        "certificate");
  }
  return Read(files);
}

absl::StatusOr<TlsPem> ReadServerTls(const TlsFiles& files) {
  if (files.cert.empty() && files.key.empty() && !files.ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-ca needs --tls-cert and --tls-key");
  }
  return Read(files);
}

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(
    const TlsPem& pem) {
  if (pem.ca.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = pem.ca;
  tls.pem_cert_chain = pem.cert;
  tls.pem_private_key = pem.key;
  return grpc::SslCredentials(tls);
}

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    const TlsPem& pem) {
  if (pem.cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions tls(
      pem.ca.empty()
          ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  tls.pem_root_certs = pem.ca;
  tls.pem_key_cert_pairs.push_back({pem.key, pem.cert});
  return grpc::SslServerCredentials(tls);
}

}  // namespace ring
