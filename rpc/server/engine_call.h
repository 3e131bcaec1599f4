// EngineCall: what all gRPC calls have in common whose answer comes from the engine. It is the
// request's sink and remembers its id, so that a cancel reaches the engine whenever it comes.
//
// Threads: the sink's functions run on the engine's thread, the reactors' on gRPC's. gRPC and the
// engine both hold the object; it lives until gRPC's OnDone and until the engine has let go.
#pragma once

#include <grpcpp/support/status.h>

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "rpc/server/call_gate.h"
#include "runtime/engine/request_queue.h"

namespace keyline {

class EngineCall : public TokenSink {
 public:
  explicit EngineCall(RequestQueue& queue) : queue_(queue) {}

  // gRPC's hold on `self`, until OnDone.
  void Hold(std::shared_ptr<EngineCall> self) { self_ = std::move(self); }
  // The call's place among those that run.
  void Admit(CallGate::Ticket ticket) { ticket_.emplace(std::move(ticket)); }
  // The request as it will be submitted. Before Submit.
  virtual void Prepare(const Request& request) = 0;
  // Ends the call; it was not submitted.
  virtual void Refuse(const grpc::Status& status) = 0;

  // What Submit gave.
  void Bind(RequestId id) {
    {
      std::lock_guard lock(id_mutex_);
      id_ = id;
      if (!cancel_) return;
    }
    queue_.Cancel(id);
  }

 protected:
  // Once is enough, again is harmless; before Bind it is remembered.
  void CancelRequest() {
    std::optional<RequestId> id;
    {
      std::lock_guard lock(id_mutex_);
      if (std::exchange(cancel_, true)) return;
      id = id_;
    }
    if (id) queue_.Cancel(*id);
  }

  // For OnDone, last: may destroy the object.
  void Release() {
    ticket_.reset();
    const std::shared_ptr<EngineCall> self = std::move(self_);
  }

 private:
  RequestQueue& queue_;
  std::mutex id_mutex_;
  std::optional<RequestId> id_;
  bool cancel_ = false;
  std::optional<CallGate::Ticket> ticket_;
  std::shared_ptr<EngineCall> self_;
};

}  // namespace keyline
