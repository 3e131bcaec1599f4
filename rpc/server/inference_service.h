// InferenceService: keyline.v1.Inference on gRPC's callback API. Handlers run on gRPC's threads:
// they check, tokenise, submit and return; the rest is EngineCall's.
#pragma once

#include "absl/time/time.h"
#include "keyline/v1/inference.grpc.pb.h"
#include "rpc/server/call_gate.h"
#include "rpc/server/token_writer.h"
#include "rpc/wire/request_from_proto.h"

namespace keyline {

// Raw: see raw_message.h.
using RawInferenceService = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_GenerateStream<v1::Inference::WithRawCallbackMethod_Score<
        v1::Inference::WithRawCallbackMethod_Embed<v1::Inference::WithRawCallbackMethod_Tokenize<
            v1::Inference::WithRawCallbackMethod_Detokenize<v1::Inference::Service>>>>>>;

class InferenceService final : public RawInferenceService {
 public:
  struct Options {
    RequestRules rules;
    int max_pending_tokens = 0;
    absl::Duration retry_delay;
  };
  // `queue`, `gate` and the tokenizer must outlive the service, which must outlive its server.
  InferenceService(const Options& options, RequestQueue& queue, CallGate& gate)
      : options_(options), queue_(queue), gate_(gate) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  // Reads a ProtoRequest and submits it with `call` as its sink, or refuses the call.
  template <typename ProtoRequest>
  void Submit(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
              const std::shared_ptr<EngineCall>& call);
  template <typename ProtoRequest>
  absl::Status TrySubmit(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
                         const std::shared_ptr<EngineCall>& call);
  absl::Status TokenizeInto(const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response);
  absl::Status DetokenizeInto(const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response);

  const Options options_;
  RequestQueue& queue_;
  CallGate& gate_;
  SendThread sender_;
};

}  // namespace keyline
