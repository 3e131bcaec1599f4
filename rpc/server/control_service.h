// ControlService: keyline.v1.Control: ServerFacts and the engine's load, as messages; and Drain.
#pragma once

#include <functional>

#include "absl/time/time.h"
#include "keyline/v1/control.grpc.pb.h"
#include "rpc/server/call_gate.h"
#include "rpc/server/server_facts.h"
#include "runtime/engine/request_queue.h"

namespace keyline {

class ControlService final : public v1::Control::CallbackService {
 public:
  struct Options {
    bool has_tokenizer = false;
    int64_t max_request_bytes = 0;
    int64_t max_text_bytes = 0;
    // Must not wait; may be called again.
    std::function<void()> drain;
  };
  // `queue` and `gate` must outlive the service.
  ControlService(Options options, ServerFacts facts, const RequestQueue& queue,
                 const CallGate& gate);

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                         const v1::GetPlacementRequest* request,
                                         v1::GetPlacementResponse* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const v1::GetLoadRequest* request,
                                    v1::GetLoadResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  const Options options_;
  const ServerFacts facts_;
  const RequestQueue& queue_;
  const CallGate& gate_;
  const absl::Time started_;
};

}  // namespace keyline
