#include "rpc/server/sessions_service.h"

#include <memory>
#include <optional>
#include <utility>

#include "kernels/device/status_macros.h"
#include "rpc/wire/conversation_prompt.h"
#include "rpc/wire/raw_message.h"
#include "rpc/wire/status_to_grpc.h"

namespace keyline {
namespace {

// A call that is answered once, from any thread, and counts as running until then.
class PendingCall {
 public:
  PendingCall(grpc::ServerUnaryReactor* reactor, grpc::ByteBuffer* response,
              std::optional<CallGate::Ticket> ticket)
      : reactor_(reactor), response_(response), ticket_(std::move(ticket)) {}

  void Answer(const google::protobuf::Message& message) {
    *response_ = SerializeMessage(message);
    ticket_.reset();
    reactor_->Finish(grpc::Status::OK);
  }
  void Refuse(const absl::Status& status) {
    ticket_.reset();
    reactor_->Finish(StatusToGrpc(status));
  }
  // The message that `write` makes of what was asked for.
  template <typename T, typename Write>
  void Answer(const absl::StatusOr<T>& result, const Write& write) {
    if (result.ok()) {
      Answer(write(*result));
    } else {
      Refuse(result.status());
    }
  }

 private:
  grpc::ServerUnaryReactor* const reactor_;
  grpc::ByteBuffer* const response_;
  std::optional<CallGate::Ticket> ticket_;
};
using PendingPtr = std::shared_ptr<PendingCall>;

template <typename Response>
Response WithSession(const SessionInfo& info) {
  Response response;
  *response.mutable_session() = SessionToProto(info);
  return response;
}

}  // namespace

template <typename Request, typename Work>
grpc::ServerUnaryReactor* SessionsService::Serve(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer& bytes,
                                                 grpc::ByteBuffer* response, const Work& work) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  std::optional<CallGate::Ticket> ticket = gate_.Enter();
  const bool open = ticket.has_value();
  const auto call = std::make_shared<PendingCall>(reactor, response, std::move(ticket));
  Request request;
  if (!open) {
    call->Refuse(absl::UnavailableError("the server is draining; its sessions end with it"));
  } else if (store_ == nullptr) {
    call->Refuse(absl::FailedPreconditionError("this server has no sessions"));
  } else if (const absl::Status parsed = ParseMessage(bytes, &request); !parsed.ok()) {
    call->Refuse(parsed);
  } else {
    work(request, call);
  }
  return reactor;
}

grpc::ServerUnaryReactor* SessionsService::CreateSession(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return Serve<v1::CreateSessionRequest>(
      context, *request, response, [this](const auto& asked, const PendingPtr& call) {
        const absl::StatusOr<SessionOptions> options = SessionOptionsFromProto(asked, rules_);
        if (!options.ok()) return call->Refuse(options.status());
        call->Answer(store_->Create(*options), WithSession<v1::CreateSessionResponse>);
      });
}

grpc::ServerUnaryReactor* SessionsService::GetSession(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Serve<v1::GetSessionRequest>(
      context, *request, response, [this](const auto& asked, const PendingPtr& call) {
        call->Answer(store_->Get(asked.session_id()), WithSession<v1::GetSessionResponse>);
      });
}

grpc::ServerUnaryReactor* SessionsService::ListSessions(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return Serve<v1::ListSessionsRequest>(
      context, *request, response, [this](const auto&, const PendingPtr& call) {
        v1::ListSessionsResponse list;
        for (const SessionInfo& info : store_->List()) *list.add_sessions() = SessionToProto(info);
        const absl::StatusOr<std::vector<SavedSession>> saved = store_->ListSaved();
        if (saved.ok()) {
          for (const SavedSession& file : *saved) *list.add_saved() = SavedSessionToProto(file);
        } else if (!absl::IsFailedPrecondition(saved.status())) {  // that is: no --session-dir
          return call->Refuse(saved.status());
        }
        call->Answer(list);
      });
}

grpc::ServerUnaryReactor* SessionsService::ForkSession(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Serve<v1::ForkSessionRequest>(
      context, *request, response, [this](const auto& asked, const PendingPtr& call) {
        store_->Fork(asked.session_id(), [call](const absl::StatusOr<SessionInfo>& fork) {
          call->Answer(fork, WithSession<v1::ForkSessionResponse>);
        });
      });
}

grpc::ServerUnaryReactor* SessionsService::DeleteSession(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return Serve<v1::DeleteSessionRequest>(
      context, *request, response, [this](const auto& asked, const PendingPtr& call) {
        absl::Status status = FieldError("target", "not set, must be session_id or saved_name");
        if (asked.has_session_id()) status = store_->Delete(asked.session_id());
        if (asked.has_saved_name()) status = store_->DeleteSaved(asked.saved_name());
        if (!status.ok()) return call->Refuse(status);
        call->Answer(v1::DeleteSessionResponse());
      });
}

grpc::ServerUnaryReactor* SessionsService::SaveSession(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Serve<v1::SaveSessionRequest>(
      context, *request, response, [this](const auto& asked, const PendingPtr& call) {
        store_->Save(asked.session_id(), [call](const absl::StatusOr<SavedSession>& saved) {
          call->Answer(saved, [](const SavedSession& file) {
            v1::SaveSessionResponse answer;
            *answer.mutable_saved() = SavedSessionToProto(file);
            return answer;
          });
        });
      });
}

grpc::ServerUnaryReactor* SessionsService::RestoreSession(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return Serve<v1::RestoreSessionRequest>(
      context, *request, response, [this](const auto& asked, const PendingPtr& call) {
        call->Answer(store_->Restore(asked.saved_name()), WithSession<v1::RestoreSessionResponse>);
      });
}

}  // namespace keyline
