#include "rpc/connection/credentials.h"

#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

constexpr int kReloadSeconds = 60;
constexpr size_t kMinTokenBytes = 16;

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return text.str();
}

absl::Status CheckPem(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  if (text.find("-----BEGIN ") == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a PEM file"));
  }
  return absl::OkStatus();
}

// Checks the token before a handler is started. (A server interceptor could only cancel a call that
// has already begun.)
class TokenCheck final : public grpc::AuthMetadataProcessor {
 public:
  explicit TokenCheck(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}

  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context,
                       OutputMetadata* consumed, OutputMetadata* response) override {
    (void)context;
    (void)response;
    const auto it = metadata.find("authorization");
    if (it == metadata.end()) {
      return {grpc::StatusCode::UNAUTHENTICATED, "no token: send 'authorization: Bearer ...'"};
    }
    const std::string given(it->second.data(), it->second.size());
    bool known = false;
    for (const std::string& token : tokens_) known |= SameInConstantTime(given, "Bearer " + token);
    if (!known) return {grpc::StatusCode::UNAUTHENTICATED, "the token is not one of this server's"};
    consumed->insert({"authorization", given});  // handlers never see it
    return grpc::Status::OK;
  }

 private:
  // Time does not tell how many leading bytes agree.
  static bool SameInConstantTime(const std::string& a, const std::string& b) {
    if (a.size() != b.size()) return false;
    unsigned char difference = 0;
    for (size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
    return difference == 0;
  }

  const std::vector<std::string> tokens_;
};

absl::StatusOr<std::vector<std::string>> ReadTokens(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  std::vector<std::string> tokens;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) continue;
    if (line.size() < kMinTokenBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": token ", tokens.size() + 1, " has ", line.size(),
                       " characters, must have at least ", kMinTokenBytes));
    }
    tokens.emplace_back(line);
  }
  if (tokens.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no token, one a line is wanted"));
  }
  return tokens;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const CredentialFiles& files) {
  if (files.certificate.empty() != files.key.empty()) {
    return absl::InvalidArgumentError("TLS needs both a certificate file and a key file");
  }
  if (!files.tls()) {
    if (!files.client_ca.empty() || !files.tokens.empty()) {
      return absl::InvalidArgumentError(
          "client certificates and tokens need TLS: give a certificate file and a key file");
    }
    return grpc::InsecureServerCredentials();
  }
  RETURN_IF_ERROR(CheckPem(files.certificate));
  RETURN_IF_ERROR(CheckPem(files.key));
  if (!files.client_ca.empty()) RETURN_IF_ERROR(CheckPem(files.client_ca));

  grpc::experimental::TlsServerCredentialsOptions tls(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          files.key, files.certificate, files.client_ca, kReloadSeconds));
  tls.watch_identity_key_cert_pairs();
  if (!files.client_ca.empty()) {
    tls.watch_root_certs();
    tls.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  std::shared_ptr<grpc::ServerCredentials> credentials =
      grpc::experimental::TlsServerCredentials(tls);
  if (!files.tokens.empty()) {
    ASSIGN_OR_RETURN(std::vector<std::string> tokens, ReadTokens(files.tokens));
    credentials->SetAuthMetadataProcessor(std::make_shared<TokenCheck>(std::move(tokens)));
  }
  return credentials;
}

}  // namespace keyline
