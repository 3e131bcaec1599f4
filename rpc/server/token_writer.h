// TokenWriter: one GenerateStream call, between the engine that makes tokens and a client that
// reads them at its own pace. The engine never waits: while one event is on its way, what comes is
// gathered into the next. A client that falls too far behind loses its request, not the others
// their time.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <mutex>
#include <optional>

#include "keyline/v1/inference.pb.h"
#include "rpc/server/engine_call.h"

namespace keyline {

class TokenWriter final : public EngineCall, public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // `max_pending_tokens`: gathered behind an event that is on its way.
  TokenWriter(RequestQueue& queue, int max_pending_tokens)
      : EngineCall(queue), max_pending_tokens_(max_pending_tokens) {}

  void Prepare(const Request& request) override;
  void Refuse(const grpc::Status& status) override { OnEnd(status); }

  void OnStart(const Usage& usage) override;
  void OnTokens(const TokenDelta& delta) override;
  void OnFinish(const keyline::Finish& finish) override;
  void OnError(const absl::Status& status) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { Release(); }

 private:
  void OnEnd(const grpc::Status& status);
  // All that follows, with mutex_ held. Sends what is next, if nothing is on its way.
  void Pump();
  void Send(const v1::GenerateEvent& event);
  // Nothing more is sent; the call ends with `status`.
  void Abandon(const grpc::Status& status);

  const int max_pending_tokens_;
  v1::PromptInfo prompt_info_;

  std::mutex mutex_;
  grpc::ByteBuffer bytes_;  // on their way while writing_
  bool writing_ = false;
  bool ended_ = false;  // gRPC has been told the end
  // What is still to be sent, in this order.
  bool prompt_info_pending_ = false;
  v1::Delta pending_;
  std::optional<v1::Finish> finish_;
  std::optional<grpc::Status> error_;
};

}  // namespace keyline
