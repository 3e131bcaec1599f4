// Engine: the one thread that turns requests into steps and results into tokens.
//
// What RequestQueue declares may be called from any thread; Run is called once, on rank 0's own
// thread, and drives the pipeline (runtime/pipeline/coordinator.h) until Stop or until a drain is
// complete. Cancels, deadlines and stops are decided here alone and travel in the next plan.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/sessions.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

class Coordinator;
class Tokenizer;

struct EngineOptions {
  int max_queued_requests = 256;
  int64_t max_queued_tokens = 1 << 20;  // prompt + max_new_tokens of all that wait
  absl::Duration drain_limit = absl::Seconds(30);
  SessionLimits sessions;
  int64_t max_prefix_bytes = int64_t{512} << 20;  // of snapshots of prompt prefixes; 0: none
  // Run ends the other ranks' loops when it returns. False: the coordinator is used again.
  bool stop_workers_at_end = true;
  // Hears when each rank began and ended each step; null: not measured.
  std::function<void(const pipeline::StageTiming& timing, uint64_t step)> on_timing = nullptr;
};

class Engine : public RequestQueue {
 public:
  // `tokenizer` may be null: then requests must not ask for text or stop strings. Both must outlive
  // the engine.
  Engine(Coordinator& coordinator, const Tokenizer* tokenizer, const EngineOptions& options);
  ~Engine() override;

  absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<TokenSink> sink) override;
  void Cancel(RequestId id) override;
  void Drain() override;
  EngineLoad load() const override;
  void Watch(std::weak_ptr<CacheWatcher> watcher) override;
  std::vector<LayerCacheStats> cache_stats() const override;
  SessionStore* sessions() override;

  // Serves until Stop or a drain's end, then ends the workers (options). An error of the pipeline
  // ends all requests with UNAVAILABLE and is returned.
  absl::Status Run();
  // As Drain, but what runs is ended with UNAVAILABLE at once.
  void Stop();

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace keyline
