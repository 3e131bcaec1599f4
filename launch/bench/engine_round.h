// A round of requests of random tokens through an engine of its own, for `bench decode` and
// `bench prefill`.
#pragma once

#include <time.h>

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/collecting_sink.h"
#include "runtime/engine/request.h"
#include "runtime/pipeline/coordinator.h"

namespace keyline::bench {

// Besides what it heard, the processor time that the engine's thread had used by then.
class TimedSink : public CollectingSink {
 public:
  void OnTokens(const TokenDelta& delta) override {
    CollectingSink::OnTokens(delta);
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    cpu_times.insert(cpu_times.end(), delta.tokens.size(), absl::DurationFromTimespec(now));
  }

  std::vector<absl::Duration> cpu_times;  // one a token
};

Request RandomRequest(int vocab, int prompt_tokens, int new_tokens, uint32_t seed);

// Submits `requests` together and runs them to the end, leaving the workers running. `on_timing`:
// as EngineOptions has it.
using OnTiming = std::function<void(const pipeline::StageTiming& timing, uint64_t step)>;
absl::StatusOr<std::vector<std::shared_ptr<TimedSink>>> Serve(Coordinator& coordinator,
                                                              std::vector<Request> requests,
                                                              OnTiming on_timing = nullptr);

// From when all of a round's sequences have their first token to the first one's last. Each
// sequence counts between tokens of its own: those of one step come one after the other, so that a
// cut at one moment would leave out what the same step brings to others. REQUIRES: two tokens each.
struct FullSteps {
  double tokens = 0;
  double seconds = 0;
  double host_seconds = 0;  // processor time of the engine's thread
};
FullSteps WhileAllDecode(const std::vector<std::shared_ptr<TimedSink>>& sinks);

}  // namespace keyline::bench
