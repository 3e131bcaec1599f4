// TokenWriter: one GenerateStream call, between the engine that makes tokens and a client that
// reads them at its own pace. The engine never waits: it only adds to what is pending. While one
// event is on its way, what comes is gathered into the next. A client that falls too far behind
// loses its request, not the others their time.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>

#include "keyline/v1/inference.pb.h"
#include "rpc/server/engine_call.h"
#include "rpc/server/send_thread.h"

namespace keyline {

class TokenWriter final : public EngineCall,
                          public Sending,
                          public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                          public std::enable_shared_from_this<TokenWriter> {
 public:
  // `max_pending_tokens`: gathered behind an event that is on its way.
  TokenWriter(RequestQueue& queue, SendThread& sender, int max_pending_tokens)
      : EngineCall(queue), sender_(sender), max_pending_tokens_(max_pending_tokens) {}

  void Prepare(const Request& request) override;
  void Refuse(const grpc::Status& status) override;

  void OnStart(const Usage& usage) override;
  void OnTokens(const TokenDelta& delta) override;
  void OnFinish(const keyline::Finish& finish) override;
  void OnError(const absl::Status& status) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { Release(); }

  void SendNext() override;

 private:
  // What SendNext will give to gRPC.
  struct Step {
    std::optional<v1::GenerateEvent> event;
    std::optional<grpc::Status> end;
  };
  // Both with mutex_ held.
  Step TakeStep();
  void Abandon(const grpc::Status& status);
  // After a change on the engine's thread.
  void Schedule();

  SendThread& sender_;
  const int max_pending_tokens_;
  v1::PromptInfo prompt_info_;
  grpc::ByteBuffer bytes_;  // of whoever has set writing_ or ended_

  std::mutex mutex_;
  bool scheduled_ = false;
  bool writing_ = false;
  bool ended_ = false;  // gRPC has been told the end
  // What is still to be sent, in this order; an error takes the place of `finish_`.
  bool prompt_info_pending_ = false;
  v1::Delta pending_;
  std::optional<v1::Finish> finish_;
  std::optional<grpc::Status> error_;
};

}  // namespace keyline
