#include "rpc/server/inference_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "rpc/server/token_writer.h"
#include "rpc/server/unary_answer.h"
#include "rpc/wire/raw_message.h"
#include "rpc/wire/status_to_grpc.h"

namespace keyline {
namespace {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture()
                                                                  : absl::FromChrono(deadline);
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(StatusToGrpc(status));
  return reactor;
}

}  // namespace

template <typename ProtoRequest>
absl::Status InferenceService::TrySubmit(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer& bytes,
                                         const std::shared_ptr<EngineCall>& call) {
  std::optional<CallGate::Ticket> ticket = gate_.Enter();
  if (!ticket) {
    return absl::UnavailableError("the server is draining; send the request to another one");
  }
  call->Admit(*std::move(ticket));
  ProtoRequest proto;
  RETURN_IF_ERROR(ParseMessage(bytes, &proto));
  ASSIGN_OR_RETURN(Request request, RequestFromProto(proto, options_.rules));
  request.deadline = DeadlineOf(*context);
  call->Prepare(request);
  ASSIGN_OR_RETURN(const RequestId id, queue_.Submit(std::move(request), call));
  call->Bind(id);
  return absl::OkStatus();
}

template <typename ProtoRequest>
void InferenceService::Submit(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
                              const std::shared_ptr<EngineCall>& call) {
  call->Hold(call);
  absl::Status status = TrySubmit<ProtoRequest>(context, bytes, call);
  if (status.ok()) return;
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    SetRetryDelay(status, options_.retry_delay);
    // What gRPC's own retry policies obey.
    context->AddTrailingMetadata("grpc-retry-pushback-ms",
                                 absl::StrCat(absl::ToInt64Milliseconds(options_.retry_delay)));
  }
  call->Refuse(StatusToGrpc(status));
}

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  auto call = std::make_shared<GenerateAnswer>(queue_, response);
  Submit<v1::GenerateRequest>(context, *request, call);
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto call = std::make_shared<TokenWriter>(queue_, sender_, options_.max_pending_tokens);
  Submit<v1::GenerateRequest>(context, *request, call);
  return call.get();
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  auto call = std::make_shared<ScoreAnswer>(queue_, response);
  Submit<v1::ScoreRequest>(context, *request, call);
  return call.get();
}

grpc::ServerUnaryReactor* InferenceService::Embed(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  auto call = std::make_shared<EmbedAnswer>(queue_, response);
  Submit<v1::EmbedRequest>(context, *request, call);
  return call.get();
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return Answer(context, TokenizeInto(*request, response));
}

absl::Status InferenceService::TokenizeInto(const grpc::ByteBuffer& bytes,
                                            grpc::ByteBuffer* response) {
  v1::TokenizeRequest request;
  RETURN_IF_ERROR(ParseMessage(bytes, &request));
  if (request.prompt().has_token_ids()) {
    return FieldError("prompt", "has token_ids, must be one of text, chat");
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   PromptFromProto(request.prompt(), options_.rules));
  v1::TokenizeResponse answer;
  answer.mutable_token_ids()->Add(ids.begin(), ids.end());
  *response = SerializeMessage(answer);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Answer(context, DetokenizeInto(*request, response));
}

absl::Status InferenceService::DetokenizeInto(const grpc::ByteBuffer& bytes,
                                              grpc::ByteBuffer* response) {
  v1::DetokenizeRequest request;
  RETURN_IF_ERROR(ParseMessage(bytes, &request));
  const Tokenizer* tokenizer = options_.rules.tokenizer;
  if (tokenizer == nullptr) {
    return absl::FailedPreconditionError("this server has no tokenizer");
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   TokenIdsFromProto(request.token_ids(), "token_ids", options_.rules));
  v1::DetokenizeResponse answer;
  answer.set_text(Decode(*tokenizer, ids, request.keep_special()));
  *response = SerializeMessage(answer);
  return absl::OkStatus();
}

}  // namespace keyline
