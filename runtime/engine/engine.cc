#include "runtime/engine/engine.h"

#include <glog/logging.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/engine/cache_ledger.h"
#include "runtime/engine/request_check.h"
#include "runtime/engine/scheduler.h"
#include "runtime/pipeline/coordinator.h"
#include "runtime/text/tokenizer.h"

namespace keyline {

class Engine::Loop {
 public:
  Loop(Coordinator& coordinator, const Tokenizer* tokenizer, const EngineOptions& options)
      : coordinator_(coordinator),
        tokenizer_(tokenizer),
        options_(options),
        scheduler_({.lanes = coordinator.spec().cache.lanes,
                    .max_pass_tokens = coordinator.spec().max_pass_tokens,
                    .groups = coordinator.spec().pipeline_depth}),
        ledger_(coordinator.model().config().layers) {
    load_.lanes = coordinator.spec().cache.lanes;
  }

  absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<TokenSink> sink);
  void Cancel(RequestId id);
  void Drain(absl::Duration patience);
  EngineLoad load() const;
  void Watch(std::weak_ptr<CacheWatcher> watcher);
  std::vector<LayerCacheStats> cache_stats() const;
  absl::Status Run();
  absl::Duration drain_limit() const { return options_.drain_limit; }

 private:
  struct Flight {
    std::map<int, std::shared_ptr<Sequence>> by_lane;
  };

  void TakeEvents();
  void EndExpired(absl::Time now);
  void End(RequestId id, const absl::Status& status);
  void EndAll(const absl::Status& status);
  absl::Status LaunchStep(ScheduledStep step,
                          const std::vector<std::shared_ptr<Sequence>>& started);
  absl::Status CollectStep();
  void Complete(const std::shared_ptr<Sequence>& sequence);
  void UpdateLoad();
  bool SomebodyWatches();
  void TellWatchers(const pipeline::PlacedChunk& placed, const Sequence& sequence);
  bool DrainIsOver() const;

  Coordinator& coordinator_;
  const Tokenizer* tokenizer_;
  const EngineOptions options_;
  Scheduler scheduler_;         // engine thread only
  std::deque<Flight> flights_;  // engine thread only, oldest first
  CacheLedger ledger_;

  mutable std::mutex mutex_;
  std::condition_variable events_;
  std::deque<std::shared_ptr<Sequence>> incoming_;
  std::vector<RequestId> cancels_;
  std::map<RequestId, int64_t> queued_;  // tokens reserved by each request that has no lane yet
  bool draining_ = false;
  bool ended_ = false;
  absl::Time drain_deadline_ = absl::InfiniteFuture();
  RequestId next_id_ = 1;
  EngineLoad load_;
  std::vector<std::weak_ptr<CacheWatcher>> watchers_;
};

absl::StatusOr<RequestId> Engine::Loop::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  CHECK(sink != nullptr);
  const PipelineSpec& spec = coordinator_.spec();
  RETURN_IF_ERROR(CompleteRequest(request, spec, tokenizer_));
  RETURN_IF_ERROR(
      CheckRequest(request, spec, coordinator_.model().config(), tokenizer_ != nullptr));
  std::vector<int> chunks = ChunksOf(request, spec);
  const int64_t tokens = static_cast<int64_t>(request.prompt.size()) + request.stop.max_new_tokens;

  std::lock_guard lock(mutex_);
  if (draining_ || ended_) {
    ++load_.requests_refused;
    return absl::UnavailableError("the server is shutting down; send the request to another one");
  }
  int64_t queued_tokens = 0;
  for (const auto& [id, reserved] : queued_) queued_tokens += reserved;
  if (static_cast<int>(queued_.size()) >= options_.max_queued_requests ||
      queued_tokens + tokens > std::max(options_.max_queued_tokens, tokens)) {
    ++load_.requests_refused;
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", queued_.size(), " requests (limit ",
                     options_.max_queued_requests, ") with ", queued_tokens, " tokens wait (limit ",
                     options_.max_queued_tokens, "); try again later"));
  }
  const RequestId id = next_id_++;
  queued_[id] = tokens;
  ++load_.requests_accepted;
  incoming_.push_back(std::make_shared<Sequence>(id, std::move(request), std::move(sink),
                                                 tokenizer_, std::move(chunks), spec.max_positions,
                                                 absl::Now()));
  events_.notify_all();
  return id;
}

void Engine::Loop::Cancel(RequestId id) {
  std::lock_guard lock(mutex_);
  cancels_.push_back(id);
  events_.notify_all();
}

void Engine::Loop::Drain(absl::Duration patience) {
  std::lock_guard lock(mutex_);
  draining_ = true;
  drain_deadline_ = std::min(drain_deadline_, absl::Now() + patience);
  events_.notify_all();
}

EngineLoad Engine::Loop::load() const {
  std::lock_guard lock(mutex_);
  EngineLoad load = load_;
  load.waiting = static_cast<int>(queued_.size());
  load.waiting_tokens = 0;
  for (const auto& [id, reserved] : queued_) load.waiting_tokens += reserved;
  load.draining = draining_;
  return load;
}

void Engine::Loop::Watch(std::weak_ptr<CacheWatcher> watcher) {
  std::lock_guard lock(mutex_);
  watchers_.push_back(std::move(watcher));
}

std::vector<LayerCacheStats> Engine::Loop::cache_stats() const {
  std::vector<LayerCacheStats> stats = EmptyCacheStats(coordinator_.spec(), coordinator_.model());
  ledger_.AddTo(stats);
  return stats;
}

bool Engine::Loop::SomebodyWatches() {
  std::lock_guard lock(mutex_);
  std::erase_if(watchers_, [](const auto& watcher) { return watcher.expired(); });
  return !watchers_.empty();
}

void Engine::Loop::TellWatchers(const pipeline::PlacedChunk& placed, const Sequence& sequence) {
  auto event = std::make_shared<CacheEvent>();
  event->request = sequence.id();
  event->label = sequence.request().label;
  event->first_position = placed.first_position();
  event->tokens = placed.tokens();
  for (const pipeline::LayerPlacement& layer : placed.layers()) {
    std::vector<HeadCacheEvent>& heads = event->layers.emplace_back();
    for (const pipeline::HeadPlacement& head : layer.heads()) {
      heads.push_back({.slots = {head.slots().begin(), head.slots().end()},
                       .moved_from = {head.moved_from().begin(), head.moved_from().end()},
                       .moved_to = {head.moved_to().begin(), head.moved_to().end()},
                       .evicted = {head.evicted().begin(), head.evicted().end()}});
    }
  }
  std::vector<std::weak_ptr<CacheWatcher>> watchers;
  {
    std::lock_guard lock(mutex_);
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) {
    if (const auto held = watcher.lock()) held->OnCacheEvent(event);
  }
}

void Engine::Loop::TakeEvents() {
  std::deque<std::shared_ptr<Sequence>> incoming;
  std::vector<RequestId> cancels;
  {
    std::lock_guard lock(mutex_);
    incoming.swap(incoming_);
    cancels.swap(cancels_);
  }
  for (auto& sequence : incoming) scheduler_.Enqueue(std::move(sequence));
  for (RequestId id : cancels) End(id, absl::CancelledError("the request was cancelled"));
}

void Engine::Loop::End(RequestId id, const absl::Status& status) {
  std::shared_ptr<Sequence> sequence = scheduler_.Remove(id);
  if (sequence == nullptr) return;
  ledger_.Close(id);
  {
    std::lock_guard lock(mutex_);
    queued_.erase(id);
    ++(status.code() == absl::StatusCode::kCancelled ? load_.requests_cancelled
                                                     : load_.requests_failed);
  }
  UpdateLoad();
  sequence->Fail(status);
}

void Engine::Loop::EndExpired(absl::Time now) {
  for (const auto& sequence : scheduler_.All()) {
    if (sequence->request().deadline <= now) {
      End(sequence->id(),
          absl::DeadlineExceededError(absl::StrCat("the request's deadline passed after ",
                                                   sequence->new_tokens(), " new tokens")));
    }
  }
}

void Engine::Loop::EndAll(const absl::Status& status) {
  TakeEvents();
  for (const auto& sequence : scheduler_.All()) End(sequence->id(), status);
}

void Engine::Loop::UpdateLoad() {
  std::lock_guard lock(mutex_);
  load_.running = scheduler_.running();
}

absl::Status Engine::Loop::LaunchStep(ScheduledStep step,
                                      const std::vector<std::shared_ptr<Sequence>>& started) {
  const absl::Time now = absl::Now();
  {
    std::lock_guard lock(mutex_);
    for (const auto& sequence : started) queued_.erase(sequence->id());
    ++load_.steps;
    for (const auto& sequence : started) {
      load_.prompt_tokens += sequence->request().prompt.size();
    }
  }
  UpdateLoad();
  for (const auto& sequence : started) sequence->MarkStarted(now);
  step.plan.set_want_timing(options_.on_timing != nullptr);
  step.plan.set_want_placements(SomebodyWatches());
  for (const pipeline::PlanBatch& batch : step.plan.batches()) {
    for (const pipeline::PlanChunk& chunk : batch.chunks()) {
      const Sequence& sequence = *step.by_lane.at(chunk.lane());
      ledger_.Advance(sequence.id(), *sequence.request().cache, chunk.first_position(),
                      chunk.token_ids_size());
    }
  }
  flights_.push_back({std::move(step.by_lane)});
  return coordinator_.Launch(std::move(step.plan));
}

void Engine::Loop::Complete(const std::shared_ptr<Sequence>& sequence) {
  std::optional<CacheReport> report;
  if (sequence->request().response.cache_report) {
    report = ReportCache(*sequence, coordinator_.spec(), coordinator_.model());
  }
  scheduler_.Remove(sequence->id());
  ledger_.Close(sequence->id());
  {
    std::lock_guard lock(mutex_);
    ++(sequence->error().ok() ? load_.requests_finished : load_.requests_failed);
    load_.running = scheduler_.running();
  }
  sequence->Finish(absl::Now(), std::move(report));
}

absl::Status Engine::Loop::CollectStep() {
  ASSIGN_OR_RETURN(Coordinator::Result result, coordinator_.Collect());
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  // A lane whose request has ended since (lane == -1, or another request's) is not looked at.
  const auto sequence_of = [&](int lane) -> std::shared_ptr<Sequence> {
    const auto found = flight.by_lane.find(lane);
    if (found == flight.by_lane.end() || found->second->lane != lane) return nullptr;
    return found->second;
  };
  for (const pipeline::ChunkTraceResult& trace : result.merged.traces()) {
    if (auto sequence = sequence_of(trace.lane())) sequence->OnTrace(trace);
  }
  for (const pipeline::PlacedChunk& placed : result.merged.placements()) {
    if (auto sequence = sequence_of(placed.lane())) TellWatchers(placed, *sequence);
  }
  const absl::Time now = absl::Now();
  int sampled_tokens = 0;
  for (const pipeline::SampledTokenResult& sampled : result.merged.tokens()) {
    if (auto sequence = sequence_of(sampled.lane())) {
      ++sampled_tokens;
      if (sequence->OnSampled(sampled, now)) Complete(sequence);
    }
  }
  {
    std::lock_guard lock(mutex_);
    load_.generated_tokens += sampled_tokens;
  }
  for (pipeline::ScoredChunk& scored : *result.merged.mutable_scores()) {
    if (auto sequence = sequence_of(scored.lane())) {
      if (sequence->OnScored(std::move(scored))) Complete(sequence);
    }
  }
  for (const pipeline::HiddenResult& hidden : result.merged.hidden()) {
    if (auto sequence = sequence_of(hidden.lane())) {
      if (sequence->OnHidden(hidden)) Complete(sequence);
    }
  }
  if (options_.on_timing) {
    for (const pipeline::StageTiming& timing : result.timings) {
      options_.on_timing(timing, result.merged.step());
    }
  }
  return absl::OkStatus();
}

bool Engine::Loop::DrainIsOver() const {
  std::lock_guard lock(mutex_);
  return absl::Now() >= drain_deadline_;
}

absl::Status Engine::Loop::Run() {
  absl::Status status;
  while (status.ok()) {
    TakeEvents();
    EndExpired(absl::Now());
    if (DrainIsOver()) EndAll(absl::UnavailableError("the server is shutting down"));
    if (!flights_.empty() && coordinator_.ResultReady()) {
      status = CollectStep();
      continue;
    }
    if (coordinator_.in_flight() < coordinator_.spec().pipeline_depth) {
      std::vector<std::shared_ptr<Sequence>> started;
      if (auto step = scheduler_.NextStep(&started)) {
        status = LaunchStep(std::move(*step), started);
        continue;
      }
    }
    if (!flights_.empty()) {
      status = CollectStep();
      continue;
    }
    std::unique_lock lock(mutex_);
    if (draining_ && incoming_.empty() && scheduler_.idle()) break;
    if (incoming_.empty() && cancels_.empty() && !draining_) events_.wait(lock);
  }
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
  }
  if (!status.ok()) {
    EndAll(absl::UnavailableError(
        absl::StrCat("the pipeline was lost: ", std::string(status.message()))));
    return status;
  }
  if (options_.stop_workers_at_end) coordinator_.Shutdown();
  return absl::OkStatus();
}

Engine::Engine(Coordinator& coordinator, const Tokenizer* tokenizer, const EngineOptions& options)
    : loop_(std::make_unique<Loop>(coordinator, tokenizer, options)) {}
Engine::~Engine() = default;

absl::StatusOr<RequestId> Engine::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  return loop_->Submit(std::move(request), std::move(sink));
}
void Engine::Cancel(RequestId id) { loop_->Cancel(id); }
absl::Status Engine::Run() { return loop_->Run(); }
void Engine::Drain() { loop_->Drain(loop_->drain_limit()); }
void Engine::Stop() { loop_->Drain(absl::ZeroDuration()); }
EngineLoad Engine::load() const { return loop_->load(); }
void Engine::Watch(std::weak_ptr<CacheWatcher> watcher) { loop_->Watch(std::move(watcher)); }
std::vector<LayerCacheStats> Engine::cache_stats() const { return loop_->cache_stats(); }

}  // namespace keyline
