// RequestQueue: the engine as those see it who bring requests (gRPC services, the command line).
// Thread: any. Implemented by Engine; tests of the services bring their own.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine/cache_events.h"
#include "runtime/engine/request.h"
#include "runtime/engine/session_store.h"
#include "runtime/engine/token_sink.h"

namespace keyline {

struct EngineLoad {
  int lanes = 0;
  int running = 0;  // requests that hold a lane
  int waiting = 0;  // queued
  int64_t waiting_tokens = 0;
  bool draining = false;
  uint64_t steps = 0;
  uint64_t requests_accepted = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_cancelled = 0;
  uint64_t requests_failed = 0;
  uint64_t requests_refused = 0;
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
};

class RequestQueue {
 public:
  virtual ~RequestQueue() = default;
  // Validates and queues. INVALID_ARGUMENT (field, limit, got, what would fit), RESOURCE_EXHAUSTED
  // (queue full), UNAVAILABLE (draining or stopped), NOT_FOUND (no such session),
  // FAILED_PRECONDITION (the session is busy). After OK the sink hears exactly one OnFinish
  // or OnError, perhaps before Submit has returned; after an error it hears nothing.
  virtual absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<TokenSink> sink) = 0;
  // The lane is free at the next step; the sink hears OnError(CANCELLED). Unknown ids are ignored.
  // Never waits, and may be called from inside a sink's call.
  virtual void Cancel(RequestId id) = 0;
  // No new work; running and queued requests finish, up to the drain limit.
  virtual void Drain() = 0;
  virtual EngineLoad load() const = 0;

  // The watcher hears of every chunk that is launched from now on, until it is gone. While anybody
  // watches, steps take longer: each rank reads its decisions back.
  virtual void Watch(std::weak_ptr<CacheWatcher> watcher) = 0;
  // One a layer.
  virtual std::vector<LayerCacheStats> cache_stats() const = 0;
  // Null: there are none here, and requests must not name one.
  virtual SessionStore* sessions() { return nullptr; }
};

}  // namespace keyline
