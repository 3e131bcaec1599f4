#include "tests/rpc/fake_queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"

namespace keyline::testing {

FakeQueue::FakeQueue(const Options& options) : options_(options), thread_([this] { Run(); }) {}

FakeQueue::~FakeQueue() { Stop(); }

void FakeQueue::Stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<RequestId> FakeQueue::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  std::lock_guard lock(mutex_);
  if (load_.draining) return absl::UnavailableError("the engine is draining");
  if (load_.waiting >= options_.max_waiting) {
    ++load_.requests_refused;
    return absl::ResourceExhaustedError("the queue is full");
  }
  last_request_ = request;
  const RequestId id = next_id_++;
  waiting_.push_back({id, std::move(request), std::move(sink), 0, absl::Now()});
  ++load_.waiting;
  ++load_.requests_accepted;
  changed_.notify_all();
  return id;
}

void FakeQueue::Cancel(RequestId id) {
  std::lock_guard lock(mutex_);
  cancels_.emplace(id, absl::Now());
}

void FakeQueue::Drain() {
  std::lock_guard lock(mutex_);
  load_.draining = true;
}

EngineLoad FakeQueue::load() const {
  std::lock_guard lock(mutex_);
  EngineLoad load = load_;
  load.lanes = options_.lanes;
  return load;
}

Request FakeQueue::last_request() const {
  std::lock_guard lock(mutex_);
  return last_request_;
}

absl::Duration FakeQueue::slowest_cancel() const {
  std::lock_guard lock(mutex_);
  return slowest_cancel_;
}

absl::Duration FakeQueue::slowest_step() const {
  std::lock_guard lock(mutex_);
  return slowest_step_;
}

std::map<std::string, int> FakeQueue::ends() const {
  std::lock_guard lock(mutex_);
  return ends_;
}

bool FakeQueue::WaitIdle(absl::Duration limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoMilliseconds(limit),
                           [&] { return load_.running == 0 && load_.waiting == 0; });
}

void FakeQueue::Run() {
  std::vector<Running> running;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || !running.empty() || !waiting_.empty(); });
      if (stop_) break;
      while (!waiting_.empty() && static_cast<int>(running.size()) < options_.lanes) {
        running.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
      }
      load_.running = static_cast<int>(running.size());
      load_.waiting = static_cast<int>(waiting_.size());
    }
    const absl::Time begin = absl::Now();
    Step(running);
    const absl::Duration taken = absl::Now() - begin;
    {
      std::lock_guard lock(mutex_);
      ++load_.steps;
      load_.running = static_cast<int>(running.size());
      slowest_step_ = std::max(slowest_step_, taken);
    }
    changed_.notify_all();
    absl::SleepFor(options_.step);
  }
  std::lock_guard lock(mutex_);
  load_.draining = true;
  std::move(waiting_.begin(), waiting_.end(), std::back_inserter(running));
  waiting_.clear();
  for (Running& request : running) {
    request.sink->OnError(absl::UnavailableError("the engine has stopped"));
  }
}

void FakeQueue::Step(std::vector<Running>& running) {
  std::vector<Running> still;
  for (Running& request : running) {
    if (!Advance(request)) still.push_back(std::move(request));
  }
  running = std::move(still);
}

std::optional<absl::Status> FakeQueue::TakeCancel(const Running& running) {
  std::lock_guard lock(mutex_);
  const auto it = cancels_.find(running.id);
  if (it == cancels_.end()) {
    if (absl::Now() < running.request.deadline) return std::nullopt;
    return absl::DeadlineExceededError("the request's deadline has passed");
  }
  slowest_cancel_ = std::max(slowest_cancel_, absl::Now() - it->second);
  cancels_.erase(it);
  return absl::CancelledError("cancelled");
}

void FakeQueue::Watch(std::weak_ptr<CacheWatcher> watcher) {
  std::lock_guard lock(mutex_);
  watchers_.push_back(std::move(watcher));
}

std::vector<LayerCacheStats> FakeQueue::cache_stats() const {
  return {{.layer = 0, .rank = 0, .capacity = 64, .slots_used = 3, .evicted = 7, .bytes = 100},
          {.layer = 1, .rank = 1, .capacity = 32, .slots_used = 2, .evicted = 8, .bytes = 50}};
}

void FakeQueue::TellWatchers(const Running& running) {
  std::vector<std::weak_ptr<CacheWatcher>> watchers;
  {
    std::lock_guard lock(mutex_);
    watchers = watchers_;
  }
  auto event = std::make_shared<CacheEvent>();
  event->request = running.id;
  event->label = running.request.label;
  event->first_position = running.made;
  event->tokens = 1;
  HeadCacheEvent head{.slots = {running.made}, .moved_from = {5}, .moved_to = {6}, .evicted = {}};
  if (running.made >= 64) head.evicted = {running.made - 64};
  event->layers = {{head, head}, {head, head}};
  for (const auto& watcher : watchers) {
    if (const auto held = watcher.lock()) held->OnCacheEvent(event);
  }
}

void FakeQueue::CountEnd(const std::string& kind) {
  std::lock_guard lock(mutex_);
  ++ends_[kind];
}

bool FakeQueue::Advance(Running& running) {
  const Request& request = running.request;
  Usage usage{static_cast<int>(request.prompt.size()), running.made};
  if (const std::optional<absl::Status> cancelled = TakeCancel(running)) {
    CountEnd(absl::StatusCodeToString(cancelled->code()));
    running.sink->OnError(*cancelled);
    return true;
  }
  if (running.made == 0) running.sink->OnStart(usage);
  if (!request.reads_only()) {
    const char letter = static_cast<char>('a' + running.made % 26);
    TokenDelta delta;
    delta.first_index = running.made;
    delta.tokens = {letter};
    if (request.response.text) delta.text.assign(options_.text_bytes, letter);
    if (request.response.logprobs) delta.logprobs = {-0.5f};
    if (request.response.top_logprobs > 0) {
      delta.top_logprobs.push_back({{letter, -0.5f}, {'z', -2.0f}});
    }
    running.sink->OnTokens(delta);
    TellWatchers(running);
    usage.new_tokens = ++running.made;
    if (running.made < request.stop.max_new_tokens) return false;
  }
  Finish finish;
  finish.usage = usage;
  finish.timings.total = absl::Now() - running.submitted;
  if (request.score.enabled) {
    finish.score.emplace().logprobs.assign(request.prompt.size() - 1, -1.5f);
  }
  if (request.embed.enabled) finish.hidden = {0.25f, -1.0f};
  if (request.response.cache_report) {
    finish.cache = CacheReport{"h2o", "int8", 16, 4096, {{0, 64, 40, 3, 2}}};
  }
  CountEnd("finish");
  running.sink->OnFinish(finish);
  return true;
}

}  // namespace keyline::testing
