#include "launch/bench/engine_round.h"

#include <algorithm>
#include <random>
#include <utility>

#include "kernels/device/status_macros.h"
#include "runtime/engine/engine.h"

namespace keyline::bench {

Request RandomRequest(int vocab, int prompt_tokens, int new_tokens, uint32_t seed) {
  Request request;
  std::mt19937 random(seed);
  request.prompt.resize(prompt_tokens);
  for (int32_t& token : request.prompt) token = static_cast<int32_t>(random() % vocab);
  request.response.text = false;
  request.stop.max_new_tokens = new_tokens;
  request.stop.ignore_eos = true;
  return request;
}

absl::StatusOr<std::vector<std::shared_ptr<TimedSink>>> Serve(Coordinator& coordinator,
                                                              std::vector<Request> requests,
                                                              OnTiming on_timing) {
  // The engine runs on this thread and ends when it is idle, so each round has its own.
  EngineOptions options;
  options.drain_limit = absl::InfiniteDuration();
  options.stop_workers_at_end = false;
  options.on_timing = std::move(on_timing);
  options.max_queued_requests = static_cast<int>(requests.size());
  options.max_queued_tokens = 0;
  for (const Request& request : requests) {
    options.max_queued_tokens +=
        static_cast<int64_t>(request.prompt.size()) + request.stop.max_new_tokens;
  }
  Engine engine(coordinator, nullptr, options);
  std::vector<std::shared_ptr<TimedSink>> sinks;
  for (Request& request : requests) {
    sinks.push_back(std::make_shared<TimedSink>());
    RETURN_IF_ERROR(engine.Submit(std::move(request), sinks.back()).status());
  }
  engine.Drain();
  RETURN_IF_ERROR(engine.Run());
  for (const auto& sink : sinks) RETURN_IF_ERROR(sink->status);
  return sinks;
}

FullSteps WhileAllDecode(const std::vector<std::shared_ptr<TimedSink>>& sinks) {
  absl::Time begin = absl::InfinitePast();
  absl::Time end = absl::InfiniteFuture();
  absl::Duration cpu_begin, cpu_end = absl::InfiniteDuration();
  for (const auto& sink : sinks) {
    begin = std::max(begin, sink->token_times.front());
    end = std::min(end, sink->token_times.back());
    cpu_begin = std::max(cpu_begin, sink->cpu_times.front());
    cpu_end = std::min(cpu_end, sink->cpu_times.back());
  }
  FullSteps full;
  double rate = 0;
  for (const auto& sink : sinks) {
    const std::vector<absl::Time>& times = sink->token_times;
    const auto first = std::upper_bound(times.begin(), times.end(), begin) - 1;
    const auto last = std::lower_bound(times.begin(), times.end(), end);
    const auto steps = static_cast<double>(last - first);
    full.tokens += steps;
    rate += steps / absl::ToDoubleSeconds(*last - *first);
  }
  full.seconds = full.tokens / rate;
  full.host_seconds =
      full.seconds *
      absl::FDivDuration(std::max(cpu_end - cpu_begin, absl::ZeroDuration()), end - begin);
  return full;
}

}  // namespace keyline::bench
