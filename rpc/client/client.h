// keyline::Client: the C++ SDK of a keyline server. Requests and answers are the messages of
// keyline/v1/*.proto; errors are absl::Status. No gRPC in this header.
//
//   absl::StatusOr<std::unique_ptr<keyline::Client>> client =
//   keyline::Client::Connect("host:50051"); keyline::v1::GenerateRequest request;
//   request.mutable_prompt()->set_text("Once upon a time");
//   auto answer = (*client)->Generate(request);
//
// Installed as <keyline/client.h> by the package keyline-client (see rpc/client/README.md).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "keyline/v1/control.pb.h"
#include "keyline/v1/inference.pb.h"
#include "keyline/v1/sessions.pb.h"

namespace keyline {

struct ClientOptions {
  // PEM file of the authority that the server's certificate comes from; "" = no TLS.
  std::string server_ca_file;
  // What the server's certificate is made out to, if not the address's host.
  std::string server_name;
  // This client's own certificate and key, if the server asks for one.
  std::string certificate_file;
  std::string key_file;
  // Sent as "authorization: Bearer ..."; needs TLS.
  std::string token;

  // A call that was refused (UNAVAILABLE, or RESOURCE_EXHAUSTED with a delay) before it had any
  // answer is sent again, so often in all; it waits as long as the server says, or else 0.1, 0.2,
  // 0.4 ... 2 s.
  int max_attempts = 4;
};

struct CallOptions {
  // Of the call with all its attempts. DEADLINE_EXCEEDED afterwards; the server frees what it held.
  absl::Time deadline = absl::InfiniteFuture();
};

// The events of one GenerateStream call. Next and Finish: one thread; Cancel: any.
class EventStream {
 public:
  virtual ~EventStream() = default;  // cancels what is not finished
  // Waits for the next event; false at the stream's end.
  virtual bool Next(v1::GenerateEvent* event) = 0;
  // How the stream ended. After Next has returned false, or to give up early: what has not been
  // read is then cancelled.
  virtual absl::Status Finish() = 0;
  virtual void Cancel() = 0;
};

// All calls wait; all may be made from any number of threads at once.
class Client {
 public:
  // `address`: "host:port". Does not wait for the server: see WaitUntilReady.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& address,
                                                         const ClientOptions& options = {});
  virtual ~Client() = default;

  virtual absl::StatusOr<v1::GenerateResponse> Generate(const v1::GenerateRequest& request,
                                                        const CallOptions& call = {}) = 0;
  // Returns at once; whatever goes wrong is what Finish says.
  virtual std::unique_ptr<EventStream> GenerateStream(const v1::GenerateRequest& request,
                                                      const CallOptions& call = {}) = 0;
  // The same with a callback, which may return false to cancel the rest; the status is then OK.
  absl::Status GenerateStream(const v1::GenerateRequest& request,
                              const std::function<bool(const v1::GenerateEvent&)>& on_event,
                              const CallOptions& call = {});
  virtual absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request,
                                                  const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::EmbedResponse> Embed(const v1::EmbedRequest& request,
                                                  const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                        const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                            const CallOptions& call = {}) = 0;

  // Conversations that stay on the server: GenerateRequest.session_id continues one.
  virtual absl::StatusOr<v1::CreateSessionResponse> CreateSession(
      const v1::CreateSessionRequest& request, const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::GetSessionResponse> GetSession(const v1::GetSessionRequest& request,
                                                            const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::ListSessionsResponse> ListSessions(const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::ForkSessionResponse> ForkSession(const v1::ForkSessionRequest& request,
                                                              const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::DeleteSessionResponse> DeleteSession(
      const v1::DeleteSessionRequest& request, const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::SaveSessionResponse> SaveSession(const v1::SaveSessionRequest& request,
                                                              const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::RestoreSessionResponse> RestoreSession(
      const v1::RestoreSessionRequest& request, const CallOptions& call = {}) = 0;

  virtual absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo(const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::GetPlacementResponse> GetPlacement(const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::GetLoadResponse> GetLoad(const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::GetCacheStatsResponse> GetCacheStats(const CallOptions& call = {}) = 0;
  // Waits for events until `on_event` returns false (the status is then OK), the deadline or the
  // server's end. `on_watching` (may be null) is called once nothing is missed any more.
  virtual absl::Status WatchCacheEvents(const v1::WatchCacheEventsRequest& request,
                                        const std::function<bool(const v1::CacheEvent&)>& on_event,
                                        const std::function<void()>& on_watching = nullptr,
                                        const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<v1::DrainResponse> Drain(const CallOptions& call = {}) = 0;

  // OK once the server takes requests; DEADLINE_EXCEEDED, with the last reason, if it does not by
  // then.
  virtual absl::Status WaitUntilReady(absl::Time deadline) = 0;
};

// After which time the server wants to be asked again, if it said so.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace keyline
