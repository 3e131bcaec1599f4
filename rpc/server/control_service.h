// ControlService: keyline.v1.Control: ServerFacts and the engine's load, as messages; Drain; and
// the watching of caches.
#pragma once

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "keyline/v1/control.grpc.pb.h"
#include "rpc/server/cache_event_writer.h"
#include "rpc/server/call_gate.h"
#include "rpc/server/send_thread.h"
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
    CacheEventWriter::Limits watcher;
  };
  // `queue` and `gate` must outlive the service.
  ControlService(Options options, ServerFacts facts, RequestQueue& queue, const CallGate& gate);

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
  grpc::ServerUnaryReactor* GetCacheStats(grpc::CallbackServerContext* context,
                                          const v1::GetCacheStatsRequest* request,
                                          v1::GetCacheStatsResponse* response) override;
  grpc::ServerWriteReactor<v1::CacheEvent>* WatchCacheEvents(
      grpc::CallbackServerContext* context, const v1::WatchCacheEventsRequest* request) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  const Options options_;
  const ServerFacts facts_;
  RequestQueue& queue_;
  const CallGate& gate_;
  const absl::Time started_;
  // Each watcher holds it, and this service.
  const std::shared_ptr<void> watchers_ = std::make_shared<int>();
  // Of its own: an event may be large, and must not hold up tokens.
  SendThread sender_;
};

}  // namespace keyline
