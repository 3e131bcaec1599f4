// FakeQueue: an engine without a model. One thread makes a token for every running request each
// step, token i of a request being 'a' + i % 26, and keeps the contract of RequestQueue: exactly
// one end for each request, cancels and deadlines at the next step.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "runtime/engine/request_queue.h"

namespace keyline::testing {

class FakeQueue : public RequestQueue {
 public:
  struct Options {
    int lanes = 16;
    int max_waiting = 16;
    absl::Duration step = absl::Milliseconds(1);
    int text_bytes = 1;  // per token
  };
  explicit FakeQueue(const Options& options);
  FakeQueue() : FakeQueue(Options()) {}
  ~FakeQueue() override;

  absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<TokenSink> sink) override;
  void Cancel(RequestId id) override;
  void Drain() override;
  EngineLoad load() const override;
  // Each running request tells one event a step: its token went to the slot of its number, and
  // the one 64 before it was dropped.
  void Watch(std::weak_ptr<CacheWatcher> watcher) override;
  std::vector<LayerCacheStats> cache_stats() const override;
  // Ends all requests with UNAVAILABLE, as an engine does that has lost its pipeline.
  void Stop();

  // Of the request that was submitted last.
  Request last_request() const;
  // Longest time from Cancel to the step that freed the lane, and longest time that the sinks took
  // of one step.
  absl::Duration slowest_cancel() const;
  absl::Duration slowest_step() const;
  // How often a sink was told an end, by its kind: "finish" or the code's name.
  std::map<std::string, int> ends() const;
  // Waits until nothing runs and nothing waits.
  bool WaitIdle(absl::Duration limit);

 private:
  struct Running {
    RequestId id;
    Request request;
    std::shared_ptr<TokenSink> sink;
    int made = 0;
    absl::Time submitted;
  };
  void Run();
  void Step(std::vector<Running>& running);
  // True when the request is at its end.
  bool Advance(Running& running);
  std::optional<absl::Status> TakeCancel(const Running& running);
  void TellWatchers(const Running& running);
  void CountEnd(const std::string& kind);

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Running> waiting_;
  std::map<RequestId, absl::Time> cancels_;
  RequestId next_id_ = 1;
  Request last_request_;
  EngineLoad load_;
  std::map<std::string, int> ends_;
  std::vector<std::weak_ptr<CacheWatcher>> watchers_;
  absl::Duration slowest_cancel_;
  absl::Duration slowest_step_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace keyline::testing
