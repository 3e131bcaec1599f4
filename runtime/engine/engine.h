// Engine: the one thread that turns requests into steps and results into tokens.
//
// Submit and Cancel come from any thread; Run is called once, on rank 0's own thread, and drives the
// pipeline (runtime/pipeline/coordinator.h) until Stop or until a drain is complete. Cancels, deadlines
// and stops are decided here alone and travel in the next plan.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine/request.h"
#include "runtime/engine/token_sink.h"

namespace keyline {

class Coordinator;
class Tokenizer;

struct EngineOptions {
  int max_queued_requests = 256;
  int64_t max_queued_tokens = 1 << 20;  // prompt + max_new_tokens of all that wait
  absl::Duration drain_limit = absl::Seconds(30);
};

struct EngineLoad {
  int lanes = 0;
  int running = 0;   // requests that hold a lane
  int waiting = 0;   // queued
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

class Engine {
 public:
  // `tokenizer` may be null: then requests must not ask for text or stop strings. Both must outlive
  // the engine.
  Engine(Coordinator& coordinator, const Tokenizer* tokenizer, const EngineOptions& options);
  ~Engine();

  // Validates and queues. INVALID_ARGUMENT (field, limit, got, what would fit), RESOURCE_EXHAUSTED
  // (queue full), UNAVAILABLE (draining or stopped). After OK the sink hears exactly one OnFinish or
  // OnError.
  absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<TokenSink> sink);
  // The lane is free at the next step; the sink hears OnError(CANCELLED). Unknown ids are ignored.
  void Cancel(RequestId id);

  // Serves until Stop or a drain's end. An error of the pipeline ends all requests with UNAVAILABLE and
  // is returned.
  absl::Status Run();
  // No new work; running requests finish, up to the drain limit; then Run returns.
  void Drain();
  // As Drain with no patience.
  void Stop();

  EngineLoad load() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace keyline
