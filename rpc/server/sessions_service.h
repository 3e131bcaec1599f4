// SessionsService: keyline.v1.Sessions: the engine's SessionStore, as messages. Handlers run on
// gRPC's threads; what waits for the engine or the disk is answered from there.
#pragma once

#include "keyline/v1/sessions.grpc.pb.h"
#include "rpc/server/call_gate.h"
#include "rpc/wire/request_from_proto.h"
#include "runtime/engine/session_store.h"

namespace keyline {

// Raw: see raw_message.h.
using RawSessionsService = v1::Sessions::WithRawCallbackMethod_CreateSession<
    v1::Sessions::WithRawCallbackMethod_GetSession<v1::Sessions::WithRawCallbackMethod_ListSessions<
        v1::Sessions::WithRawCallbackMethod_ForkSession<
            v1::Sessions::WithRawCallbackMethod_DeleteSession<
                v1::Sessions::WithRawCallbackMethod_SaveSession<
                    v1::Sessions::WithRawCallbackMethod_RestoreSession<v1::Sessions::Service>>>>>>>;

class SessionsService final : public RawSessionsService {
 public:
  // `store` may be null: every call says so then. It, the gate and the tokenizer must outlive the
  // service.
  SessionsService(const RequestRules& rules, SessionStore* store, CallGate& gate)
      : rules_(rules), store_(store), gate_(gate) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ForkSession(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* SaveSession(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* RestoreSession(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;

 private:
  // Parses a Request and hands it to `work`, which answers through the call that it is given, at
  // once or later.
  template <typename Request, typename Work>
  grpc::ServerUnaryReactor* Serve(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response,
                                  const Work& work);

  const RequestRules rules_;
  SessionStore* const store_;
  CallGate& gate_;
};

}  // namespace keyline
