#include "rpc/client/client.h"

#include <grpc/grpc.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "keyline/v1/control.grpc.pb.h"
#include "keyline/v1/inference.grpc.pb.h"
#include "keyline/v1/sessions.grpc.pb.h"

namespace keyline {
namespace {

constexpr char kReadyService[] = "keyline.v1.Inference";
constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(2);
constexpr absl::Duration kReadyPause = absl::Milliseconds(50);

// The status of a call that was not cancelled here. CANCELLED is then a connection that a server
// reset as it ended: streams that came in too late.
absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.error_code() == grpc::StatusCode::CANCELLED) {
    return absl::UnavailableError("the server ended");
  }
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
    }
  }
  return result;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ClientOptions& options) {
  if (options.server_ca_file.empty()) {
    if (!options.token.empty() || !options.certificate_file.empty()) {
      return absl::InvalidArgumentError(
          "a token or a client certificate needs TLS: give server_ca_file");
    }
    return grpc::InsecureChannelCredentials();
  }
  if (options.certificate_file.empty() != options.key_file.empty()) {
    return absl::InvalidArgumentError("certificate_file and key_file go together");
  }
  grpc::SslCredentialsOptions tls;
  const std::pair<std::string, std::string*> files[] = {
      {options.server_ca_file, &tls.pem_root_certs},
      {options.certificate_file, &tls.pem_cert_chain},
      {options.key_file, &tls.pem_private_key}};
  for (const auto& [path, text] : files) {
    if (path.empty()) continue;
    absl::StatusOr<std::string> pem = ReadFile(path);
    if (!pem.ok()) return pem.status();
    *text = *std::move(pem);
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::SslCredentials(tls);
  if (options.token.empty()) return credentials;
  return grpc::CompositeChannelCredentials(credentials,
                                           grpc::AccessTokenCredentials(options.token));
}

std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address, const ClientOptions& options,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY,
                   0);                           // a server is next door, whatever http_proxy says
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // Retry does it
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Less than Retry waits in all, or every attempt of a call meets the same lost connection. gRPC
  // 1.51 loses some that nobody refused: it looks at errno long after connect() has set it.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a client, a connection
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

// A deadline for gRPC, whose clock ends in 2262.
void SetDeadline(absl::Time deadline, grpc::ClientContext& context) {
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
}

// Decides whether and when a refused call is sent again.
class Retry {
 public:
  Retry(int max_attempts, absl::Time deadline) : left_(max_attempts), deadline_(deadline) {}

  // Before an attempt. All but the first wait for a connection: an attempt that fails at once would
  // spend itself on a server that is just coming up.
  void Prepare(grpc::ClientContext& context) {
    SetDeadline(deadline_, context);
    context.set_wait_for_ready(attempted_ && deadline_ != absl::InfiniteFuture());
    attempted_ = true;
    --left_;
  }

  // True after a pause, if the call should be sent again.
  bool Again(const absl::Status& status) {
    const std::optional<absl::Duration> wanted = RetryDelay(status);
    if (left_ <= 0) return false;
    if (!absl::IsUnavailable(status) && !(absl::IsResourceExhausted(status) && wanted))
      return false;
    const absl::Duration pause = wanted.value_or(pause_);
    pause_ = std::min(2 * pause_, kLongestPause);
    if (absl::Now() + pause >= deadline_) return false;
    absl::SleepFor(pause);
    return true;
  }

 private:
  int left_;
  absl::Time deadline_;
  bool attempted_ = false;
  absl::Duration pause_ = kFirstPause;
};

// One GenerateStream call; sent again only while nothing has come back.
class RetryingStream final : public EventStream {
 public:
  RetryingStream(v1::Inference::Stub* stub, v1::GenerateRequest request, Retry retry)
      : stub_(stub), request_(std::move(request)), retry_(retry) {
    Open();
  }

  ~RetryingStream() override { (void)Finish(); }

  bool Next(v1::GenerateEvent* event) override {
    while (!finished_) {
      if (reader_->Read(event)) {
        any_ = true;
        return true;
      }
      const grpc::Status end = reader_->Finish();
      const bool cancelled = Cancelled() && end.error_code() == grpc::StatusCode::CANCELLED;
      status_ = cancelled ? absl::CancelledError("cancelled") : FromGrpc(end);
      if (any_ || Cancelled() || !retry_.Again(status_)) {
        finished_ = true;
      } else {
        Open();
      }
    }
    return false;
  }

  absl::Status Finish() override {
    if (finished_) return status_;
    Cancel();
    v1::GenerateEvent rest;
    while (Next(&rest)) {
    }
    return status_;
  }

  void Cancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    context_->TryCancel();
  }

 private:
  void Open() {
    reader_.reset();
    auto context = std::make_unique<grpc::ClientContext>();
    retry_.Prepare(*context);
    reader_ = stub_->GenerateStream(context.get(), request_);
    std::lock_guard lock(mutex_);
    if (cancelled_) context->TryCancel();
    context_.swap(context);
  }

  bool Cancelled() {
    std::lock_guard lock(mutex_);
    return cancelled_;
  }

  v1::Inference::Stub* stub_;
  const v1::GenerateRequest request_;
  Retry retry_;
  std::mutex mutex_;  // Cancel comes from any thread
  bool cancelled_ = false;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader_;
  bool any_ = false;
  bool finished_ = false;
  absl::Status status_;
};

class GrpcClient final : public Client {
 public:
  GrpcClient(const std::shared_ptr<grpc::Channel>& channel, int max_attempts)
      : max_attempts_(max_attempts),
        inference_(v1::Inference::NewStub(channel)),
        sessions_(v1::Sessions::NewStub(channel)),
        control_(v1::Control::NewStub(channel)),
        health_(grpc::health::v1::Health::NewStub(channel)) {}

  absl::StatusOr<v1::GenerateResponse> Generate(const v1::GenerateRequest& request,
                                                const CallOptions& call) override {
    return Call(*inference_, &v1::Inference::Stub::Generate, request, call);
  }
  std::unique_ptr<EventStream> GenerateStream(const v1::GenerateRequest& request,
                                              const CallOptions& call) override {
    return std::make_unique<RetryingStream>(inference_.get(), request,
                                            Retry(max_attempts_, call.deadline));
  }
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request,
                                          const CallOptions& call) override {
    return Call(*inference_, &v1::Inference::Stub::Score, request, call);
  }
  absl::StatusOr<v1::EmbedResponse> Embed(const v1::EmbedRequest& request,
                                          const CallOptions& call) override {
    return Call(*inference_, &v1::Inference::Stub::Embed, request, call);
  }
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                const CallOptions& call) override {
    return Call(*inference_, &v1::Inference::Stub::Tokenize, request, call);
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    const CallOptions& call) override {
    return Call(*inference_, &v1::Inference::Stub::Detokenize, request, call);
  }
  absl::StatusOr<v1::CreateSessionResponse> CreateSession(const v1::CreateSessionRequest& request,
                                                          const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::CreateSession, request, call);
  }
  absl::StatusOr<v1::GetSessionResponse> GetSession(const v1::GetSessionRequest& request,
                                                    const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::GetSession, request, call);
  }
  absl::StatusOr<v1::ForkSessionResponse> ForkSession(const v1::ForkSessionRequest& request,
                                                      const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::ForkSession, request, call);
  }
  absl::StatusOr<v1::DeleteSessionResponse> DeleteSession(const v1::DeleteSessionRequest& request,
                                                          const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::DeleteSession, request, call);
  }
  absl::StatusOr<v1::SaveSessionResponse> SaveSession(const v1::SaveSessionRequest& request,
                                                      const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::SaveSession, request, call);
  }
  absl::StatusOr<v1::RestoreSessionResponse> RestoreSession(
      const v1::RestoreSessionRequest& request, const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::RestoreSession, request, call);
  }
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(const CallOptions& call) override {
    return Call(*sessions_, &v1::Sessions::Stub::ListSessions, v1::ListSessionsRequest(), call);
  }
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const CallOptions& call) override {
    return Call(*control_, &v1::Control::Stub::GetServerInfo, v1::GetServerInfoRequest(), call);
  }
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo(const CallOptions& call) override {
    return Call(*control_, &v1::Control::Stub::GetModelInfo, v1::GetModelInfoRequest(), call);
  }
  absl::StatusOr<v1::GetPlacementResponse> GetPlacement(const CallOptions& call) override {
    return Call(*control_, &v1::Control::Stub::GetPlacement, v1::GetPlacementRequest(), call);
  }
  absl::StatusOr<v1::GetLoadResponse> GetLoad(const CallOptions& call) override {
    return Call(*control_, &v1::Control::Stub::GetLoad, v1::GetLoadRequest(), call);
  }
  absl::StatusOr<v1::GetCacheStatsResponse> GetCacheStats(const CallOptions& call) override {
    return Call(*control_, &v1::Control::Stub::GetCacheStats, v1::GetCacheStatsRequest(), call);
  }
  absl::Status WatchCacheEvents(const v1::WatchCacheEventsRequest& request,
                                const std::function<bool(const v1::CacheEvent&)>& on_event,
                                const std::function<void()>& on_watching,
                                const CallOptions& call) override {
    grpc::ClientContext context;
    SetDeadline(call.deadline, context);
    const auto reader = control_->WatchCacheEvents(&context, request);
    reader->WaitForInitialMetadata();
    if (on_watching) on_watching();
    v1::CacheEvent event;
    while (reader->Read(&event)) {
      if (on_event(event)) continue;
      context.TryCancel();
      while (reader->Read(&event)) {
      }
      (void)reader->Finish();
      return absl::OkStatus();
    }
    return FromGrpc(reader->Finish());
  }
  absl::StatusOr<v1::DrainResponse> Drain(const CallOptions& call) override {
    return Call(*control_, &v1::Control::Stub::Drain, v1::DrainRequest(), call);
  }

  absl::Status WaitUntilReady(absl::Time deadline) override {
    std::string last = "no answer";
    while (true) {
      grpc::ClientContext context;
      SetDeadline(deadline, context);
      context.set_wait_for_ready(true);
      grpc::health::v1::HealthCheckRequest request;
      request.set_service(kReadyService);
      grpc::health::v1::HealthCheckResponse response;
      const grpc::Status status = health_->Check(&context, request, &response);
      if (status.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
        return absl::OkStatus();
      }
      if (status.error_code() == grpc::StatusCode::UNAUTHENTICATED) return FromGrpc(status);
      if (status.ok()) last = "the server takes no requests";
      if (!status.ok() && !status.error_message().empty()) last = status.error_message();
      if (absl::Now() + kReadyPause >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("the server is not ready: ", last));
      }
      absl::SleepFor(kReadyPause);
    }
  }

 private:
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request, const CallOptions& call) {
    Retry retry(max_attempts_, call.deadline);
    while (true) {
      grpc::ClientContext context;
      retry.Prepare(context);
      Response response;
      const absl::Status status = FromGrpc((stub.*method)(&context, request, &response));
      if (status.ok()) return response;
      if (!retry.Again(status)) return status;
    }
  }

  const int max_attempts_;
  const std::unique_ptr<v1::Inference::Stub> inference_;
  const std::unique_ptr<v1::Sessions::Stub> sessions_;
  const std::unique_ptr<v1::Control::Stub> control_;
  const std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& address,
                                                        const ClientOptions& options) {
  // gRPC 1.51: when the last channel goes, grpc_shutdown may wait 10 s for a thread in epoll_wait.
  // One reference that is never given back avoids it.
  static const bool kept = (grpc_init(), true);
  (void)kept;
  if (options.max_attempts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_attempts: got ", options.max_attempts, ", must be at least 1"));
  }
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = MakeCredentials(options);
  if (!credentials.ok()) return credentials.status();
  return std::make_unique<GrpcClient>(MakeChannel(address, options, *credentials),
                                      options.max_attempts);
}

absl::Status Client::GenerateStream(const v1::GenerateRequest& request,
                                    const std::function<bool(const v1::GenerateEvent&)>& on_event,
                                    const CallOptions& call) {
  const std::unique_ptr<EventStream> stream = GenerateStream(request, call);
  v1::GenerateEvent event;
  while (stream->Next(&event)) {
    if (!on_event(event)) return absl::OkStatus();
  }
  return stream->Finish();
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryInfo);
  google::rpc::RetryInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) return std::nullopt;
  return absl::Seconds(info.retry_delay().seconds()) +
         absl::Nanoseconds(info.retry_delay().nanos());
}

}  // namespace keyline
