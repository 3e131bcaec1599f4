// bench decode: whole steps through the engine, against reading all weights and caches once.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "launch/bench/engine_round.h"
#include "launch/ranks.h"
#include "runtime/cache/cache_registry.h"

namespace keyline::bench {
namespace {

// Most steps that the prompts of so many sequences take.
int StepsOfPrompts(const PipelineSpec& spec, int sequences, int depth) {
  const int chunk = *spec.cache.policy.chunk_size;
  return sequences * ((std::max(depth, 1) + chunk - 1) / chunk);
}

class Decoder {
 public:
  Decoder(const Run& run, const PipelineSpec& spec, RankProbes& probes, Coordinator& coordinator,
          const std::vector<pipeline::RankReady>& ranks)
      : run_(run), spec_(spec), probes_(probes), coordinator_(coordinator), ranks_(ranks) {}

  absl::Status Measure(int batch, int depth) {
    // Those who come first decode while the others' prompts are read.
    const int tokens = run_.args.tokens + StepsOfPrompts(spec_, batch - 1, depth);
    std::vector<double> rates, host;
    double bandwidth = 0;
    for (int round = 0; round < run_.args.repeat; ++round) {
      bandwidth = std::max(bandwidth, probes_.ReadBandwidth());
      std::vector<Request> requests;
      for (int i = 0; i < batch; ++i) {
        requests.push_back(RandomRequest(run_.opened.model->config().vocab_size, std::max(depth, 1),
                                         tokens, 100u + i));
      }
      ASSIGN_OR_RETURN(const auto sinks, Serve(coordinator_, std::move(requests)));
      const FullSteps full = WhileAllDecode(sinks);
      rates.push_back(full.tokens / full.seconds);
      // A step has at most one token of a sequence.
      const double steps = full.tokens / (batch / Groups(batch));
      host.push_back(full.host_seconds * 1e6 / steps);
    }
    const double groups = Groups(batch);
    const double bytes = groups * WeightBytes() + KvBytes(batch, depth + tokens / 2.0);
    run_.report.Add({.name = absl::StrCat("decode B=", batch, " depth ", depth),
                     .value = Median(rates),
                     .unit = "tok/s",
                     .limit = batch * bandwidth * probes_.Share(static_cast<int>(groups)) / bytes,
                     .limit_by = absl::StrCat("reading ", absl::SixDigits(bytes * 1e-9), " GB at ",
                                              Rate(bandwidth, "B")),
                     .more = {{"batch", batch},
                              {"depth", depth},
                              {"read_bandwidth", bandwidth},
                              {"bytes", bytes},
                              {"host_us_per_step", Median(host)}}});
    return absl::OkStatus();
  }

 private:
  // Micro-batches that the sequences are dealt to; each reads all the weights on its way.
  double Groups(int batch) const { return std::min(batch, spec_.pipeline_depth); }

  // Read once by each micro-batch: all but the embedding, unless it is the head too.
  double WeightBytes() const {
    const ModelConfig& config = run_.opened.model->config();
    double weights = 0;
    for (const pipeline::RankReady& rank : ranks_) {
      weights += static_cast<double>(rank.weight_bytes());
    }
    if (!config.tied_embeddings || ranks_.size() > 1) {
      const MatrixSpec table = EmbeddingTensors(*run_.opened.model, spec_).matrices.at(0);
      weights -= static_cast<double>(
          BytesOf(table.format.value_or(spec_.dtype), table.rows() * table.cols));
    }
    return weights;
  }

  double KvBytes(int batch, double tokens) const {
    const ModelConfig& config = run_.opened.model->config();
    const StorageFormats formats = *FormatsOf(spec_.cache.storage, spec_.dtype);
    double slots = 0;
    for (int length : spec_.cache_lengths) slots += std::min<double>(length, tokens);
    return batch * slots * config.kv_heads *
           static_cast<double>(KvRowBytes(formats.k, config.head_dim) +
                               KvRowBytes(formats.v, config.head_dim));
  }

  const Run& run_;
  const PipelineSpec& spec_;
  RankProbes& probes_;
  Coordinator& coordinator_;
  const std::vector<pipeline::RankReady>& ranks_;
};

}  // namespace

PipelineNeeds DecodeNeeds(const LaunchOptions& options, const Arguments& args) {
  const int lanes = *std::max_element(args.batch.begin(), args.batch.end());
  const int depth = *std::max_element(args.depth.begin(), args.depth.end());
  // A prompt's steps, in which those who came first decode: no default chunk is smaller.
  const int chunk = options.kv.chunk_size.value_or(64);
  const int steps = lanes * (depth / chunk + 1);
  return {.lanes = lanes, .cache_length = std::max(depth, 1) + args.tokens + steps + 1};
}

absl::Status Decode(const Run& run) {
  const Arguments& args = run.args;
  ASSIGN_OR_RETURN(const PipelineSpec spec,
                   MakeSpec(run.options, run.opened, DecodeNeeds(run.options, args)));
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(run.options));
  ASSIGN_OR_RETURN(RankProbes probes, RankProbes::Open(run.options, ranks));
  Describe(run, spec, probes.description(), ranks, probes.threads());
  return RunPipeline(run.options, run.opened, spec, /*show_progress=*/true,
                     [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>& ready) {
                       Decoder decoder(run, spec, probes, coordinator, ready);
                       for (int batch : args.batch) {
                         for (int d : args.depth) RETURN_IF_ERROR(decoder.Measure(batch, d));
                       }
                       coordinator.Shutdown();
                       return absl::OkStatus();
                     });
}

}  // namespace keyline::bench
