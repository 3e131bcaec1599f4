// Who may connect: plain, TLS or mutual TLS, and bearer tokens, from files. Called once at a
// server's start.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace keyline {

struct CredentialFiles {
  std::string certificate;  // PEM; "" = no TLS
  std::string key;
  std::string client_ca;  // "" = clients show no certificate
  std::string tokens;     // one a line; "" = none needed

  bool tls() const { return !certificate.empty(); }
};

// INVALID_ARGUMENT for files that need each other, or are not what they should be; NOT_FOUND for
// unreadable ones. Certificates are read again when they change, tokens are not.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const CredentialFiles& files);

}  // namespace keyline
