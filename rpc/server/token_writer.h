// TokenWriter: one GenerateStream call, between the engine that makes tokens and a client that
// reads them at its own pace. The engine never waits: it only adds to what is pending. While one
// event is on its way, what comes is gathered into the next. A client that falls too far behind
// loses its request, not the others their time.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "keyline/v1/inference.pb.h"
#include "rpc/server/engine_call.h"

namespace keyline {

class TokenWriter;

// Hands what writers have pending to gRPC, so that the engine's thread need not: a write takes gRPC
// some 20 us, an engine with many lanes makes that many tokens a step. One for all writers of a
// server; outlives them.
class SendThread {
 public:
  SendThread() : thread_([this] { Run(); }) {}
  ~SendThread();
  // Any thread; does not wait.
  void Schedule(std::shared_ptr<TokenWriter> writer);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<TokenWriter>> scheduled_;
  bool stop_ = false;
  std::thread thread_;
};

class TokenWriter final : public EngineCall,
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

  // Gives gRPC what is next, unless something is on its way. Not on the engine's thread.
  void SendNext();

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
