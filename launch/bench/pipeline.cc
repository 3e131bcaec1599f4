// bench pipeline: a pipeline of any number of ranks, out of the times of its stages and hops; held
// against one of the ranks at hand.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "launch/bench/pipeline_simulation.h"
#include "launch/bench/stage_times.h"
#include "runtime/transport/communicator.h"

namespace keyline::bench {
namespace {

class Predictor {
 public:
  Predictor(const Run& run, const Device& device, const StageTimes& times)
      : run_(run), device_(device), times_(times) {}

  // The layers are dealt as that pipeline would deal them, whose caches count. Not OK where there
  // are more ranks than layers.
  absl::Status Plan(int ranks, const PipelineNeeds& needs) {
    ASSIGN_OR_RETURN(PipelineSpec spec, MakeSpec(run_.options, run_.opened, needs));
    RETURN_IF_ERROR(FillShards(device_, *run_.opened.model, ranks, spec));
    shards_ = std::move(spec.shards);
    ranks_ = ranks;
    return absl::OkStatus();
  }

  // Tokens a second of `groups` micro-batches.
  double Decode(const DecodeTimes& times, int groups) const {
    SimulatedStep step{.stage = StagesOf(times.step), .hop = times.hop};
    return DecodeRate(Setting(times.turnaround, groups), groups, times.batch, std::move(step));
  }

  struct PromptTime {
    double seconds;
    double ideal;
  };
  PromptTime Prompt() const {
    std::vector<SimulatedStep> steps;
    for (size_t i = 0; i < times_.piece.size(); ++i) {
      // The head works for the last piece alone; what the others' stages differ by is noise.
      const bool last = i + 1 == times_.piece.size();
      PartTimes piece = times_.piece[i];
      if (!last) piece.head = 0;
      steps.push_back(
          {.stage = StagesOf(piece), .hop = times_.piece_hop, .after = -1, .samples = last});
    }
    const PipelineSetting setting = Setting(times_.piece_turnaround, ranks_);
    return {PromptSeconds(setting, steps), IdealPromptSeconds(setting, steps)};
  }

  // The parts of a step, in microseconds.
  nlohmann::json Parts(const PartTimes& parts, const HopTime& hop) const {
    const std::vector<double> stages = StagesOf(parts);
    return {{"ranks", ranks_},
            {"slowest_stage_us", *std::max_element(stages.begin(), stages.end()) * 1e6},
            {"layer_us", parts.layer * 1e6},
            {"fixed_us", parts.fixed * 1e6},
            {"embedding_us", parts.embedding * 1e6},
            {"head_us", parts.head * 1e6},
            {"hop_us", hop.one_way * 1e6},
            {"hop_send_us", hop.send * 1e6},
            {"hop_receive_us", hop.receive * 1e6},
            {"hop_receive_device_us", hop.receive_device * 1e6},
            {"answer_us", times_.answer * 1e6}};
  }

 private:
  std::vector<double> StagesOf(const PartTimes& parts) const {
    std::vector<double> seconds;
    for (const ShardRange& shard : shards_) seconds.push_back(parts.Stage(shard));
    return seconds;
  }
  PipelineSetting Setting(double turnaround, int depth) const {
    return {.ranks = ranks_,
            .depth = depth,
            // A lone GPU runs ahead (Coordinator::runs_ahead).
            .turnaround = ranks_ == 1 && times_.devices_run_alone ? 0 : turnaround,
            .answer = times_.answer,
            .devices_run_alone = times_.devices_run_alone,
            .last_receives_ahead = times_.last_receives_ahead};
  }

  const Run& run_;
  const Device& device_;
  const StageTimes& times_;
  int ranks_ = 1;
  std::vector<ShardRange> shards_;
};

// Medians of what `kind` measures on the ranks at hand. Its rows stay in the report.
absl::StatusOr<std::vector<double>> Measured(const Run& run, const Arguments& args,
                                             absl::Status (*kind)(const Run&)) {
  const size_t before = run.report.rows().size();
  RETURN_IF_ERROR(kind({run.options, args, run.opened, run.report}));
  std::vector<double> values;
  for (size_t i = before; i < run.report.rows().size(); ++i) {
    values.push_back(run.report.rows()[i].value);
  }
  return values;
}

// The measurement beside what was predicted for it.
void AddMeasured(const Run& run, const std::string& name, double measured, double predicted,
                 int ranks) {
  run.report.Add({.name = absl::StrCat(name, " measured"),
                  .value = measured,
                  .unit = "tok/s",
                  .limit = predicted,
                  .limit_by = "the prediction",
                  .more = {{"ranks", ranks}, {"error", predicted / measured - 1}}});
}

// The same batch for each of so many ranks.
Arguments TimesRanks(const Arguments& args, int ranks) {
  Arguments scaled = args;
  for (int& batch : scaled.batch) batch *= ranks;
  return scaled;
}

absl::Status Predict(const Run& run, Predictor& predictor, const StageTimes& times, int here,
                     const std::vector<double>& decoded, double read) {
  const int layers = run.opened.model->config().layers;
  std::vector<int> counts = run.args.simulate;
  counts.insert(counts.end(), {1, here});
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  std::erase_if(counts, [&](int ranks) { return ranks > layers; });

  for (size_t b = 0; b < times.decode.size(); ++b) {
    const DecodeTimes& decode = times.decode[b];
    double one = 0;
    for (const int ranks : counts) {
      RETURN_IF_ERROR(predictor.Plan(ranks, DecodeNeeds(run.options, TimesRanks(run.args, ranks))));
      for (const int groups : {ranks, ranks + 1}) {
        if (ranks == 1 && groups > 1) continue;
        const double rate = predictor.Decode(decode, groups);
        if (ranks == 1) one = rate;
        const std::string name =
            absl::StrCat("decode N=", ranks, ", ", groups, " x B=", decode.batch);
        nlohmann::json more = predictor.Parts(decode.step, decode.hop);
        more.update({{"batch", decode.batch},
                     {"micro_batches", groups},
                     {"turnaround_us", decode.turnaround * 1e6}});
        run.report.Add({.name = name,
                        .value = rate,
                        .unit = "tok/s",
                        .limit = ranks * one,
                        .limit_by = absl::StrCat(ranks, " times one rank"),
                        .more = std::move(more)});
        if (ranks == here && groups == here) AddMeasured(run, name, decoded[b], rate, ranks);
      }
    }
  }
  double one = 0;
  for (const int ranks : counts) {
    RETURN_IF_ERROR(predictor.Plan(ranks, {.lanes = 1, .cache_length = run.args.prompt + 1}));
    const auto [seconds, ideal] = predictor.Prompt();
    if (ranks == 1) one = seconds;
    const std::string name = absl::StrCat("prompt ", run.args.prompt, " N=", ranks);
    nlohmann::json more = predictor.Parts(times.piece.back(), times.piece_hop);
    more.update({{"prompt", run.args.prompt},
                 {"pieces", times.pieces.size()},
                 {"turnaround_us", times.piece_turnaround * 1e6},
                 {"seconds", seconds},
                 {"ideal_seconds", ideal},
                 {"speed_up", one / seconds}});
    run.report.Add({.name = name,
                    .value = run.args.prompt / seconds,
                    .unit = "tok/s",
                    .limit = ranks * run.args.prompt / one,
                    .limit_by = absl::StrCat(ranks, " times one rank"),
                    .more = std::move(more)});
    if (ranks != here) continue;
    AddMeasured(run, name, read, run.args.prompt / seconds, ranks);
    run.report.Add({.name = absl::StrCat(name, " of the ideal"),
                    .value = read,
                    .unit = "tok/s",
                    .limit = run.args.prompt / ideal,
                    .limit_by = "stages that wait for hops alone",
                    .more = {{"ranks", ranks}, {"of_ideal", read * ideal / run.args.prompt}}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Pipeline(const Run& run) {
  const Arguments& args = run.args;
  if (StartedByMpi()) {
    return absl::InvalidArgumentError(
        "bench pipeline plays its ranks as threads: start it without mpirun, with --ranks N");
  }
  if (args.depth.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--depth: bench pipeline takes one, not ", args.depth.size()));
  }
  if (run.options.pipeline_depth > 0) {
    return absl::InvalidArgumentError(
        "--pipeline-depth: bench pipeline predicts as many steps in flight as ranks, and one more; "
        "leave it out");
  }
  ASSIGN_OR_RETURN(const int here, NumberOfRanks(run.options));
  ASSIGN_OR_RETURN(const StageTimes times, MeasureStageTimes(run, here));
  ASSIGN_OR_RETURN(const std::vector<double> decoded,
                   Measured(run, TimesRanks(args, here), Decode));
  ASSIGN_OR_RETURN(const std::vector<double> read, Measured(run, args, Prefill));

  run.report.Set("transport", times.transport);
  ASSIGN_OR_RETURN(const auto device, OpenDevice(DeviceOfRank(run.options, 0), {.threads = 1}));
  Predictor predictor(run, *device, times);
  return Predict(run, predictor, times, here, decoded, read.at(0));
}

}  // namespace keyline::bench
