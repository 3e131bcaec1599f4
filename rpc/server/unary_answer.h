// UnaryAnswer: calls that answer with one message, once the engine is done: Generate, Score, Embed.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <mutex>
#include <vector>

#include "keyline/v1/inference.pb.h"
#include "rpc/server/engine_call.h"
#include "rpc/wire/raw_message.h"
#include "rpc/wire/reply_to_proto.h"
#include "rpc/wire/status_to_grpc.h"

namespace keyline {

class UnaryAnswer : public EngineCall, public grpc::ServerUnaryReactor {
 public:
  // `response` is gRPC's, valid until the call has ended.
  UnaryAnswer(RequestQueue& queue, grpc::ByteBuffer* response)
      : EngineCall(queue), response_(response) {}

  void Refuse(const grpc::Status& status) override { End(status); }
  void OnError(const absl::Status& status) override { End(StatusToGrpc(status)); }
  void OnCancel() override {
    CancelRequest();
    End({grpc::StatusCode::CANCELLED, "cancelled"});
  }
  void OnDone() override { Release(); }

 protected:
  void Answer(const google::protobuf::Message& answer) {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    *response_ = SerializeMessage(answer);
    Finish(grpc::Status::OK);
  }

 private:
  void End(const grpc::Status& status) {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    Finish(status);
  }

  std::mutex mutex_;
  bool ended_ = false;
  grpc::ByteBuffer* response_;
};

class GenerateAnswer final : public UnaryAnswer {
 public:
  using UnaryAnswer::UnaryAnswer;

  void Prepare(const Request& request) override {
    answer_.mutable_prompt_info()->set_prompt_tokens(static_cast<uint32_t>(request.prompt.size()));
    answer_.mutable_prompt_info()->set_seed(request.sampling.seed);
    answer_.mutable_output();
  }
  void OnStart(const Usage& usage) override {
    answer_.mutable_prompt_info()->set_prompt_tokens(usage.prompt_tokens);
  }
  void OnTokens(const TokenDelta& delta) override { AppendDelta(delta, answer_.mutable_output()); }
  void OnFinish(const keyline::Finish& finish) override {
    *answer_.mutable_finish() = FinishToProto(finish);
    Answer(answer_);
  }

 private:
  v1::GenerateResponse answer_;  // the engine's thread
};

class ScoreAnswer final : public UnaryAnswer {
 public:
  using UnaryAnswer::UnaryAnswer;

  void Prepare(const Request& request) override { tokens_ = request.prompt; }
  void OnTokens(const TokenDelta& delta) override { (void)delta; }
  void OnFinish(const keyline::Finish& finish) override { Answer(ScoreToProto(tokens_, finish)); }

 private:
  std::vector<int32_t> tokens_;
};

class EmbedAnswer final : public UnaryAnswer {
 public:
  using UnaryAnswer::UnaryAnswer;

  void Prepare(const Request& request) override { asked_ = request.embed; }
  void OnTokens(const TokenDelta& delta) override { (void)delta; }
  void OnFinish(const keyline::Finish& finish) override { Answer(EmbedToProto(asked_, finish)); }

 private:
  EmbedOptions asked_;
};

}  // namespace keyline
