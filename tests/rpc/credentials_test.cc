// TLS, client certificates and tokens: who gets in, who is told what, and which files are refused.
#include "rpc/connection/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/time/clock.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;

constexpr char kToken[] = "0123456789abcdef-first";

// An authority, a server's and a client's certificate of it, and a stranger's client certificate.
// Made anew each time, so that none expires in the repository.
class Credentials : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ =
        new std::string(::testing::TempDir() + "/keyline_credentials_" + std::to_string(getpid()));
    std::filesystem::create_directories(*folder_);
    made_ = MakeAuthority("ca") && MakeAuthority("stranger_ca") &&
            MakeCertificate("server", "ca") && MakeCertificate("client", "ca") &&
            MakeCertificate("stranger", "stranger_ca");
    Write("tokens", std::string(kToken) + "\n\n  0123456789abcdef-second \n");
  }
  static void TearDownTestSuite() {
    std::filesystem::remove_all(*folder_);
    delete folder_;
  }
  void SetUp() override {
    if (!made_) GTEST_SKIP() << "certificates need the openssl command";
  }

  static std::string File(const std::string& name) { return *folder_ + "/" + name; }
  static void Write(const std::string& name, const std::string& text) {
    std::ofstream(File(name)) << text;
  }
  static bool Run(const std::string& arguments) {
    return std::system(("cd " + *folder_ + " && openssl " + arguments + " >log 2>&1").c_str()) == 0;
  }
  static bool MakeAuthority(const std::string& name) {
    return Run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=" +
               name + " -keyout " + name + ".key -out " + name + ".pem");
  }
  static bool MakeCertificate(const std::string& name, const std::string& authority) {
    Write(name + ".ext", "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
    return Run("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + name +
               " -keyout " + name + ".key -out " + name + ".csr") &&
           Run("x509 -req -days 2 -in " + name + ".csr -CA " + authority + ".pem -CAkey " +
               authority + ".key -CAcreateserial -extfile " + name + ".ext -out " + name + ".pem");
  }

  static ServeOptions Tls() {
    ServeOptions options;
    options.certificate_file = File("server.pem");
    options.key_file = File("server.key");
    return options;
  }
  static ClientOptions Trusting() {
    ClientOptions options;
    options.server_ca_file = File("ca.pem");
    options.max_attempts = 1;
    return options;
  }
  // What a call with these options comes to.
  static absl::Status Call(const testing::ServedQueue& served, const ClientOptions& options) {
    return served.NewClient(options)
        ->Generate(testing::TextRequest("x", 2), {.deadline = absl::Now() + absl::Seconds(10)})
        .status();
  }

  static std::string* folder_;
  static bool made_;
};
std::string* Credentials::folder_ = nullptr;
bool Credentials::made_ = false;

TEST_F(Credentials, TlsNeedsATrustedServerAndNoPlaintext) {
  testing::ServedQueue served({}, Tls());
  EXPECT_EQ(Call(served, Trusting()), absl::OkStatus());
  ClientOptions distrusting = Trusting();
  distrusting.server_ca_file = File("stranger_ca.pem");
  EXPECT_EQ(Call(served, distrusting).code(), absl::StatusCode::kUnavailable);
  ClientOptions plain;
  plain.max_attempts = 1;
  EXPECT_EQ(Call(served, plain).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(served.queue().load().requests_accepted, 1);
}

TEST_F(Credentials, MutualTlsNeedsACertificateOfTheAuthority) {
  ServeOptions options = Tls();
  options.client_ca_file = File("ca.pem");
  testing::ServedQueue served({}, options);
  EXPECT_EQ(Call(served, Trusting()).code(), absl::StatusCode::kUnavailable);
  ClientOptions known = Trusting();
  known.certificate_file = File("client.pem");
  known.key_file = File("client.key");
  EXPECT_EQ(Call(served, known), absl::OkStatus());
  ClientOptions stranger = Trusting();
  stranger.certificate_file = File("stranger.pem");
  stranger.key_file = File("stranger.key");
  EXPECT_EQ(Call(served, stranger).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(served.queue().load().requests_accepted, 1);
}

TEST_F(Credentials, TokensAreCheckedBeforeAHandlerStarts) {
  ServeOptions options = Tls();
  options.token_file = File("tokens");
  testing::ServedQueue served({}, options);
  EXPECT_EQ(Call(served, Trusting()),
            absl::UnauthenticatedError("no token: send 'authorization: Bearer ...'"));
  for (const char* token : {"0123456789abcdef-first", "0123456789abcdef-second"}) {
    ClientOptions known = Trusting();
    known.token = token;
    EXPECT_EQ(Call(served, known), absl::OkStatus());
    EXPECT_EQ(served.NewClient(known)->WaitUntilReady(absl::Now() + absl::Seconds(10)),
              absl::OkStatus());
  }
  for (const char* token : {"0123456789abcdef-third", "0123456789abcdef", "x"}) {
    ClientOptions wrong = Trusting();
    wrong.token = token;
    EXPECT_EQ(Call(served, wrong),
              absl::UnauthenticatedError("the token is not one of this server's"));
    EXPECT_EQ(served.NewClient(wrong)->WaitUntilReady(absl::InfiniteFuture()).code(),
              absl::StatusCode::kUnauthenticated);
  }
  EXPECT_EQ(served.queue().load().requests_accepted, 2);
}

TEST_F(Credentials, FilesThatWillNotDoAreRefused) {
  Write("short_token", "abc\n");
  Write("empty", "\n");
  const std::tuple<CredentialFiles, absl::StatusCode, const char*> wrong[] = {
      {{File("server.pem"), "", "", ""},
       absl::StatusCode::kInvalidArgument,
       "needs both a certificate file and a key file"},
      {{"", "", File("ca.pem"), ""}, absl::StatusCode::kInvalidArgument, "need TLS"},
      {{"", "", "", File("tokens")}, absl::StatusCode::kInvalidArgument, "need TLS"},
      {{File("none.pem"), File("server.key"), "", ""},
       absl::StatusCode::kNotFound,
       "none.pem: cannot be read"},
      {{File("server.pem"), File("tokens"), "", ""},
       absl::StatusCode::kInvalidArgument,
       "tokens: is not a PEM file"},
      {{File("server.pem"), File("server.key"), "", File("short_token")},
       absl::StatusCode::kInvalidArgument,
       "short_token: token 1 has 3 characters, must have at least 16"},
      {{File("server.pem"), File("server.key"), "", File("empty")},
       absl::StatusCode::kInvalidArgument,
       "empty: holds no token"}};
  for (const auto& [files, code, complaint] : wrong) {
    const absl::Status status = MakeServerCredentials(files).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(complaint));
  }
}

}  // namespace
}  // namespace keyline
