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
#include "runtime/engine/prefix_store.h"
#include "runtime/engine/request_check.h"
#include "runtime/engine/scheduler.h"
#include "runtime/pipeline/coordinator.h"
#include "runtime/text/tokenizer.h"

namespace keyline {
namespace {

int64_t LaneBytesOf(const Coordinator& coordinator) {
  const absl::StatusOr<size_t> bytes = LaneBytes(coordinator.model(), coordinator.spec());
  CHECK(bytes.ok()) << bytes.status();  // the caches exist
  return static_cast<int64_t>(*bytes);
}

}  // namespace

class Engine::Loop : private LaneKeeper {
 public:
  Loop(Coordinator& coordinator, const Tokenizer* tokenizer, const EngineOptions& options)
      : coordinator_(coordinator),
        tokenizer_(tokenizer),
        options_(options),
        lane_bytes_(LaneBytesOf(coordinator)),
        sessions_(options.sessions, coordinator.spec(), coordinator.model().config(), tokenizer,
                  lane_bytes_, [this] { Wake(); }),
        prefixes_(options.max_prefix_bytes),
        scheduler_(
            {.lanes = coordinator.spec().cache.lanes,
             .max_pass_tokens = coordinator.spec().max_pass_tokens,
             // A sweep of streamed layers serves all lanes at the price of one.
             .groups = coordinator.sweep_tokens() > 0 ? 1 : coordinator.spec().pipeline_depth,
             .ahead = coordinator.runs_ahead(),
             .states_per_step =
                 static_cast<int>(std::max<int64_t>(kMaxLaneStateBytes / lane_bytes_, 1)),
             .sweep_tokens = coordinator.sweep_tokens()},
            this),
        ledger_(coordinator.model().config().layers) {
    load_.lanes = coordinator.spec().cache.lanes;
  }

  absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<TokenSink> sink);
  void Cancel(RequestId id);
  void Drain(absl::Duration patience);
  EngineLoad load() const;
  void Watch(std::weak_ptr<CacheWatcher> watcher);
  std::vector<LayerCacheStats> cache_stats() const;
  SessionStore* sessions() { return &sessions_; }
  absl::Status Run();
  absl::Duration drain_limit() const { return options_.drain_limit; }

 private:
  struct Flight {
    std::vector<std::shared_ptr<Sequence>> by_lane;  // as ScheduledStep has it
    std::vector<LaneSave> saves;
    // The one that a result is of. Null where its request has ended since (its lane is -1, or
    // another's), and where the step had none.
    std::shared_ptr<Sequence> of(int lane) const {
      if (lane < 0 || lane >= static_cast<int>(by_lane.size())) return nullptr;
      return by_lane[lane] != nullptr && by_lane[lane]->lane == lane ? by_lane[lane] : nullptr;
    }
  };

  // LaneKeeper
  void AddSaves(int room, std::vector<LaneSave>* saves) override;
  int GiveUpLane(int room, std::vector<LaneSave>* saves) override;
  bool Prepare(Sequence& sequence) override;
  void AtPrefix(const Sequence& sequence, int room, std::vector<LaneSave>* saves) override;

  absl::StatusOr<RequestId> Admit(Request request, std::shared_ptr<TokenSink> sink);
  void Wake();
  void TakeEvents();
  std::shared_ptr<Sequence> Remove(RequestId id);
  void EndExpired(absl::Time now);
  void End(RequestId id, const absl::Status& status);
  void EndAll(const absl::Status& status);
  absl::Status LaunchStep(ScheduledStep step,
                          const std::vector<std::shared_ptr<Sequence>>& started);
  absl::Status CollectStep();
  void CollectStates(pipeline::StepResult& result, const Flight& flight);
  void Complete(const std::shared_ptr<Sequence>& sequence);
  void UpdateLoad();
  bool SomebodyWatches();
  void TellWatchers(const pipeline::PlacedChunk& placed, const Sequence& sequence);
  bool DrainIsOver(absl::Time now) const;

  Coordinator& coordinator_;
  const Tokenizer* tokenizer_;
  const EngineOptions options_;
  const int64_t lane_bytes_;
  Sessions sessions_;
  PrefixStore prefixes_;        // engine thread only
  Scheduler scheduler_;         // engine thread only
  std::deque<Flight> flights_;  // engine thread only, oldest first
  CacheLedger ledger_;

  mutable std::mutex mutex_;
  std::condition_variable events_;
  std::vector<std::shared_ptr<Sequence>> incoming_;
  std::vector<RequestId> cancels_;
  std::map<RequestId, int64_t> queued_;  // tokens reserved by each request that has no lane yet
  bool woken_ = false;
  bool draining_ = false;
  bool ended_ = false;
  absl::Time drain_deadline_ = absl::InfiniteFuture();
  RequestId next_id_ = 1;
  EngineLoad load_;
  std::vector<std::weak_ptr<CacheWatcher>> watchers_;
};

absl::StatusOr<RequestId> Engine::Loop::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  CHECK(sink != nullptr);
  if (!request.session.has_value()) return Admit(std::move(request), std::move(sink));
  if (request.cache.has_value() || request.prefix_tokens > 0 || request.reads_only()) {
    return absl::InvalidArgumentError(
        "session: its cache policy and prefix are those it was created with, and it answers with "
        "new tokens only");
  }
  RETURN_IF_ERROR(sessions_.Claim(request));
  const std::string session = request.session->id;
  absl::StatusOr<RequestId> id = Admit(std::move(request), std::move(sink));
  if (!id.ok()) sessions_.Unclaim(session);
  return id;
}

absl::StatusOr<RequestId> Engine::Loop::Admit(Request request, std::shared_ptr<TokenSink> sink) {
  const PipelineSpec& spec = coordinator_.spec();
  RETURN_IF_ERROR(CompleteRequest(request, spec, tokenizer_));
  RETURN_IF_ERROR(
      CheckRequest(request, spec, coordinator_.model().config(), tokenizer_ != nullptr));
  if (request.prefix_tokens > 0) {
    request.prefix_key = PrefixKey(*request.cache, request.prompt.data(), request.prefix_tokens);
  }
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

void Engine::Loop::Wake() {
  std::lock_guard lock(mutex_);
  woken_ = true;
  events_.notify_all();
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
  std::vector<std::shared_ptr<Sequence>> incoming;
  std::vector<RequestId> cancels;
  {
    std::lock_guard lock(mutex_);
    incoming.swap(incoming_);
    cancels.swap(cancels_);
    woken_ = false;
  }
  for (const int lane : sessions_.TakeFreedLanes()) scheduler_.FreeLane(lane);
  for (auto& sequence : incoming) {
    sessions_.Attach(*sequence);
    scheduler_.Enqueue(std::move(sequence));
  }
  for (RequestId id : cancels) End(id, absl::CancelledError("the request was cancelled"));
}

std::shared_ptr<Sequence> Engine::Loop::Remove(RequestId id) {
  int lane = -1;
  std::shared_ptr<Sequence> sequence = scheduler_.Remove(id, &lane);
  if (sequence != nullptr && !sessions_.EndTurn(*sequence, lane) && lane >= 0) {
    scheduler_.FreeLane(lane);
  }
  return sequence;
}

void Engine::Loop::End(RequestId id, const absl::Status& status) {
  std::shared_ptr<Sequence> sequence = Remove(id);
  if (sequence == nullptr) return;
  ledger_.Close(id, sequence->tokens_processed());
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
  for (const auto& sequence : scheduler_.Overdue(now)) {
    if (sequence->lost) {
      End(sequence->id(), absl::NotFoundError(absl::StrCat(
                              "session '", sequence->request().session->id,
                              "' was lost: --session-memory had no room for its state")));
    } else {
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
    load_.running = scheduler_.running();
    for (const auto& sequence : started) {
      const Usage usage = sequence->usage();
      load_.prompt_tokens += usage.prompt_tokens - usage.cached_prompt_tokens;
    }
  }
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
  flights_.push_back({std::move(step.by_lane), std::move(step.saves)});
  return coordinator_.Launch(std::move(step.plan));
}

void Engine::Loop::Complete(const std::shared_ptr<Sequence>& sequence) {
  std::optional<CacheReport> report;
  if (sequence->request().response.cache_report) {
    report = ReportCache(*sequence, coordinator_.spec(), coordinator_.model());
  }
  Remove(sequence->id());
  ledger_.Close(sequence->id(), sequence->tokens_processed());
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
  CollectStates(result.merged, flight);
  for (const pipeline::ChunkTraceResult& trace : result.merged.traces()) {
    if (auto sequence = flight.of(trace.lane())) sequence->OnTrace(trace);
  }
  for (const pipeline::PlacedChunk& placed : result.merged.placements()) {
    if (auto sequence = flight.of(placed.lane())) TellWatchers(placed, *sequence);
  }
  const absl::Time now = absl::Now();
  int sampled_tokens = 0;
  for (const pipeline::SampledTokenResult& sampled : result.merged.tokens()) {
    if (auto sequence = flight.of(sampled.lane())) {
      ++sampled_tokens;
      if (sequence->OnSampled(sampled, now)) Complete(sequence);
    }
  }
  {
    std::lock_guard lock(mutex_);
    load_.generated_tokens += sampled_tokens;
  }
  for (pipeline::ScoredChunk& scored : *result.merged.mutable_scores()) {
    if (auto sequence = flight.of(scored.lane())) {
      if (sequence->OnScored(std::move(scored))) Complete(sequence);
    }
  }
  for (const pipeline::HiddenResult& hidden : result.merged.hidden()) {
    if (auto sequence = flight.of(hidden.lane())) {
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

void Engine::Loop::CollectStates(pipeline::StepResult& result, const Flight& flight) {
  FinishSaves(result, flight.saves);
  // Of several ranks' failures the first one is told.
  for (const pipeline::RestoreFailure& failure : result.restore_failures()) {
    const std::shared_ptr<Sequence> sequence = flight.of(failure.lane());
    if (sequence == nullptr) continue;
    End(sequence->id(), absl::Status(static_cast<absl::StatusCode>(failure.status_code()),
                                     failure.status_message()));
  }
  for (int lane = 0; lane < static_cast<int>(flight.by_lane.size()); ++lane) {
    const std::shared_ptr<Sequence> sequence = flight.of(lane);
    if (sequence == nullptr || !sequence->restoring) continue;
    sequence->restoring = false;
    sequence->image = nullptr;
  }
}

void Engine::Loop::AddSaves(int room, std::vector<LaneSave>* saves) {
  sessions_.AddSaves(room, saves);
}

int Engine::Loop::GiveUpLane(int room, std::vector<LaneSave>* saves) {
  return sessions_.GiveUpLane(room, saves);
}

bool Engine::Loop::Prepare(Sequence& sequence) {
  if (!sessions_.Prepare(sequence)) {
    if (sequence.lost) Wake();  // EndExpired takes it
    return false;
  }
  if (sequence.image == nullptr) prefixes_.Begin(sequence);
  return true;
}

void Engine::Loop::AtPrefix(const Sequence& sequence, int room, std::vector<LaneSave>* saves) {
  if (lane_bytes_ <= kMaxLaneStateBytes) prefixes_.Keep(sequence, room, saves);
}

bool Engine::Loop::DrainIsOver(absl::Time now) const {
  std::lock_guard lock(mutex_);
  return now >= drain_deadline_;
}

absl::Status Engine::Loop::Run() {
  absl::Status status;
  while (status.ok()) {
    TakeEvents();
    const absl::Time now = absl::Now();
    EndExpired(now);
    if (DrainIsOver(now)) EndAll(absl::UnavailableError("the server is shutting down"));
    const bool room = coordinator_.in_flight() < coordinator_.most_in_flight();
    // A device that stands still comes before those who wait for what it did.
    const bool launch_first = room && coordinator_.runs_ahead();
    if (!launch_first && !flights_.empty() && (!room || coordinator_.ResultReady())) {
      status = CollectStep();
      continue;
    }
    if (room) {
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
    if (incoming_.empty() && cancels_.empty() && !draining_ && !woken_) events_.wait(lock);
  }
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
  }
  sessions_.End(absl::UnavailableError("the server is shutting down"));
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
SessionStore* Engine::sessions() { return loop_->sessions(); }

}  // namespace keyline
