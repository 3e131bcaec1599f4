// InferenceService: keyline.v1.Inference on gRPC's callback API. Handlers run on gRPC's threads:
// they check, tokenise, submit and return; the rest is EngineCall's.
#pragma once

#include "absl/time/time.h"
#include "keyline/v1/inference.grpc.pb.h"
#include "rpc/server/call_gate.h"
#include "rpc/server/engine_call.h"
#include "rpc/wire/request_from_proto.h"

namespace keyline {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  struct Options {
    RequestRules rules;
    int max_pending_tokens = 0;
    absl::Duration retry_delay;
  };
  // `queue`, `gate` and the tokenizer must outlive the service.
  InferenceService(const Options& options, RequestQueue& queue, CallGate& gate)
      : options_(options), queue_(queue), gate_(gate) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateEvent>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  // Checks `request` and submits it with `call` as its sink, or refuses the call.
  template <typename ProtoRequest>
  void Submit(grpc::CallbackServerContext* context, const ProtoRequest& request,
              const std::shared_ptr<EngineCall>& call);
  template <typename ProtoRequest>
  absl::Status TrySubmit(grpc::CallbackServerContext* context, const ProtoRequest& request,
                         const std::shared_ptr<EngineCall>& call);
  absl::Status TokenizeInto(const v1::TokenizeRequest& request, v1::TokenizeResponse* response);
  absl::Status DetokenizeInto(const v1::DetokenizeRequest& request,
                              v1::DetokenizeResponse* response);

  const Options options_;
  RequestQueue& queue_;
  CallGate& gate_;
};

}  // namespace keyline
