// bench prefill: one prompt through the engine, against multiplying at the device's peak.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "launch/bench/engine_round.h"
#include "launch/ranks.h"
#include "runtime/cache/chunk_plan.h"

namespace keyline::bench {
namespace {

// Products of the layers' weights with every token; the head works on one token only.
double WeightOperations(const DecoderModel& model, int tokens) {
  double parameters = 0;
  for (int l = 0; l < model.config().layers; ++l) {
    for (const MatrixSpec& matrix : model.LayerTensors(l).matrices) {
      parameters += static_cast<double>(matrix.rows()) * static_cast<double>(matrix.cols);
    }
  }
  return 2 * parameters * tokens;
}

// Queries times the keys that they see, and weights times values; taking attention mass comes on
// top and counts as a cost, not as work.
double AttentionOperations(const ModelConfig& config, const PipelineSpec& spec, int tokens) {
  const LanePolicy& policy = spec.cache.policy;
  const std::vector<int> chunks = PlanChunks(spec.cache_lengths, tokens, ChunkSize(policy));
  double pairs = 0;
  for (int length : spec.cache_lengths) {
    double done = 0;
    for (int chunk : chunks) {
      done += chunk;
      pairs += chunk * (std::min<double>(done, length) - chunk / 2.0);
    }
  }
  return 4 * pairs * config.heads * config.head_dim;
}

absl::Status Measure(const Run& run, const PipelineSpec& spec, RankProbes& probes,
                     Coordinator& coordinator) {
  const Arguments& args = run.args;
  const ModelConfig& config = run.opened.model->config();
  std::vector<double> rates;
  double peak = 0;
  for (int round = 0; round < args.repeat; ++round) {
    peak = std::max(peak, probes.MultiplyRate(spec.dtype));
    std::vector<Request> requests;
    requests.push_back(RandomRequest(config.vocab_size, args.prompt, 1, 100u + round));
    ASSIGN_OR_RETURN(const auto sinks, Serve(coordinator, std::move(requests)));
    const Timings& t = sinks[0]->finish->timings;
    rates.push_back(args.prompt / absl::ToDoubleSeconds(t.first_token - t.queued));
  }
  const double operations = WeightOperations(*run.opened.model, args.prompt) +
                            AttentionOperations(config, spec, args.prompt);
  run.report.Add({.name = absl::StrCat("prefill ", args.prompt),
                  .value = Median(rates),
                  .unit = "tok/s",
                  .limit = args.prompt * peak / operations,
                  .limit_by = absl::StrCat("multiplying at ", Rate(peak, "FLOP")),
                  .more = {{"prompt", args.prompt},
                           {"chunk", *spec.cache.policy.chunk_size},
                           {"multiply_rate", peak},
                           {"operations", operations}}});
  coordinator.Shutdown();
  return absl::OkStatus();
}

}  // namespace

absl::Status Prefill(const Run& run) {
  ASSIGN_OR_RETURN(
      const PipelineSpec spec,
      MakeSpec(run.options, run.opened, {.lanes = 1, .cache_length = run.args.prompt + 1}));
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(run.options));
  ASSIGN_OR_RETURN(RankProbes probes, RankProbes::Open(run.options, ranks));
  Describe(run, spec, probes.description(), ranks, probes.threads());
  return RunPipeline(run.options, run.opened, spec, /*show_progress=*/true,
                     [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>&) {
                       return Measure(run, spec, probes, coordinator);
                     });
}

}  // namespace keyline::bench
