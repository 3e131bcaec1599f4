#include "rpc/server/server.h"

#include <glog/logging.h>
#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "rpc/connection/credentials.h"
#include "rpc/connection/listener.h"
#include "rpc/server/call_gate.h"
#include "rpc/server/control_service.h"
#include "rpc/server/inference_service.h"
#include "rpc/server/sessions_service.h"

namespace keyline {
namespace {

constexpr char kReadyService[] = "keyline.v1.Inference";
constexpr int kMaxMessageBytes = 64 << 20;  // a prompt of 10 million token ids
constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kMaxStreamsPerConnection = 4096;
constexpr size_t kMaxMemoryBytes = 512 << 20;  // of gRPC's buffers
// From the begin of a drain on, for this long at least: calls that are on their way are told
// UNAVAILABLE; once gRPC shuts down it resets them.
constexpr absl::Duration kRefusing = absl::Milliseconds(500);
// After the last call has ended: time for its status to leave, and for health watchers to be told.
constexpr absl::Duration kParting = absl::Milliseconds(200);

void ConfigureBuilder(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  // Dead clients are found out in 30 s, and clients may ping during a long prefill: gRPC's default
  // of one ping in 300 s would have the server drop them.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  grpc::ResourceQuota quota("keyline");
  quota.Resize(kMaxMemoryBytes);
  builder.SetResourceQuota(quota);
}

RequestRules RulesOf(const ServeOptions& options, const ServerFacts& facts,
                     const Tokenizer* tokenizer, RequestQueue& queue) {
  return {.model = facts.model.name,
          .vocab_size = facts.model.vocab_size,
          .layers = facts.model.layers,
          .default_cache = facts.cache.policy,
          .tokenizer = tokenizer,
          .max_text_bytes = options.max_text_bytes,
          .sessions = queue.sessions()};
}

class GrpcServer final : public Server {
 public:
  GrpcServer(const ServeOptions& options, const ServerFacts& facts, const Tokenizer* tokenizer,
             RequestQueue& queue, std::unique_ptr<Listener> listener)
      : queue_(queue),
        on_drain_(options.on_drain),
        listener_(std::move(listener)),
        inference_({.rules = RulesOf(options, facts, tokenizer, queue),
                    .max_pending_tokens = options.max_pending_tokens,
                    .retry_delay = options.retry_delay},
                   queue, gate_),
        sessions_(RulesOf(options, facts, tokenizer, queue), queue.sessions(), gate_),
        control_({.has_tokenizer = tokenizer != nullptr,
                  .max_request_bytes = kMaxMessageBytes,
                  .max_text_bytes = options.max_text_bytes,
                  .drain = [this] { DrainOnRequest(); },
                  .watcher = {}},
                 facts, queue, gate_) {}

  ~GrpcServer() override {
    if (server_ != nullptr) Shutdown(absl::ZeroDuration());
  }

  absl::Status Serve(const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    ConfigureBuilder(builder);
    acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials);
    builder.RegisterService(&inference_);
    builder.RegisterService(&sessions_);
    builder.RegisterService(&control_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::InternalError(absl::StrCat("gRPC could not start a server for ",
                                              listener_->address(), "; see its log"));
    }
    server_->GetHealthCheckService()->SetServingStatus("", true);
    server_->GetHealthCheckService()->SetServingStatus(kReadyService, true);
    listener_->Start([this](int socket) {
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
      connection.listener_fd = -1;
      connection.fd = socket;
      acceptor_->HandleNewConnection(&connection);
    });
    return absl::OkStatus();
  }

  int port() const override { return listener_->port(); }
  const std::string& address() const override { return listener_->address(); }

  void BeginDrain() override {
    std::call_once(drain_begun_, [this] { refuse_until_ = absl::Now() + kRefusing; });
    gate_.Close();
    server_->GetHealthCheckService()->SetServingStatus(kReadyService, false);
  }

  bool Shutdown(absl::Duration limit) override {
    const absl::Time deadline = absl::Now() + limit;
    BeginDrain();
    const bool all_finished = gate_.WaitEmpty(limit);
    absl::SleepFor(std::min(refuse_until_, deadline) - absl::Now());
    listener_->Stop();
    server_->Shutdown(std::chrono::system_clock::now() +
                      absl::ToChronoMilliseconds(all_finished ? kParting : absl::ZeroDuration()));
    server_.reset();
    return all_finished;
  }

 private:
  void DrainOnRequest() {
    BeginDrain();
    std::call_once(drain_requested_, [this] {
      if (on_drain_) {
        on_drain_();
      } else {
        queue_.Drain();
      }
    });
  }

  RequestQueue& queue_;
  const std::function<void()> on_drain_;
  std::once_flag drain_requested_;
  std::once_flag drain_begun_;
  absl::Time refuse_until_;
  const std::unique_ptr<Listener> listener_;
  CallGate gate_;
  InferenceService inference_;
  SessionsService sessions_;
  ControlService control_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServeOptions& options,
                                                      const ServerFacts& facts,
                                                      const Tokenizer* tokenizer,
                                                      RequestQueue& queue) {
  // gRPC 1.51: when the last server or channel goes, grpc_shutdown may wait 10 s for a thread in
  // epoll_wait. One reference that is never given back avoids it.
  static const bool kept = (grpc_init(), true);
  (void)kept;
  const CredentialFiles files = {.certificate = options.certificate_file,
                                 .key = options.key_file,
                                 .client_ca = options.client_ca_file,
                                 .tokens = options.token_file};
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                   MakeServerCredentials(files));
  ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener, Listener::Bind(options.address));
  if (!listener->loopback() && !files.tls() && !options.insecure) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address ", listener->address(),
        " can be reached from other machines: give a certificate and a key for TLS, or --insecure, "
        "or a loopback address"));
  }
  auto server = std::make_unique<GrpcServer>(options, facts, tokenizer, queue, std::move(listener));
  RETURN_IF_ERROR(server->Serve(credentials));
  return server;
}

}  // namespace keyline
