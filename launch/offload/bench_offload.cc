// bench offload: decode and prefill with layers that stream through the device, against what the
// link takes. Each share of layers that stay is a pipeline of its own, with a limit on the device's
// memory that is just enough for it.
#include <algorithm>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "launch/bench/engine_round.h"
#include "launch/placement_report.h"
#include "launch/ranks.h"

namespace keyline::bench {
namespace {

// The least --device-memory with which `share` of each rank's layers stay.
absl::StatusOr<std::string> MemoryFor(const Run& run, PipelineSpec spec, int ranks, double share) {
  ASSIGN_OR_RETURN(const auto device, OpenDevice(DeviceOfRank(run.options, 0), {.threads = 1}));
  RETURN_IF_ERROR(FillShards(*device, *run.opened.model, ranks, spec));
  size_t most = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    ASSIGN_OR_RETURN(const StageNeeds needs, NeedsOfStage(*device, *run.opened.model, spec, rank));
    const int layers = static_cast<int>(needs.layers.size());
    const int resident = static_cast<int>(share * layers);
    const keyline::Offload mode = resident == 0 ? keyline::Offload::kAll : keyline::Offload::kAuto;
    const int tokens = std::min(needs.step_tokens, run.args.prompt + needs.pass_tokens);
    // Besides, the hidden states of the prompt, so that one sweep serves it.
    size_t limit = LeastBytes(needs, resident);
    for (;; limit += limit / 64) {
      ASSIGN_OR_RETURN(const OffloadPlan plan, PlanOffload(needs, mode, limit));
      if (!plan.streams()) break;
      if (layers - plan.streamed_layers() >= resident && plan.step_tokens >= tokens) break;
    }
    most = std::max(most, limit);
  }
  return absl::StrCat(most);
}

// Of all ranks, since the pipeline began.
struct Counters {
  std::map<int, int64_t> streamed;  // by rank
  std::map<int, uint64_t> peak;
  OnTiming Listener() {
    return [this](const pipeline::StageTiming& timing, uint64_t) {
      streamed[timing.rank()] = timing.streamed_bytes();
      peak[timing.rank()] = timing.peak_bytes();
    };
  }
  double total() const {
    double sum = 0;
    for (const auto& [rank, bytes] : streamed) sum += static_cast<double>(bytes);
    return sum;
  }
};

class Measurement {
 public:
  Measurement(const Run& run, Coordinator& coordinator,
              const std::vector<pipeline::RankReady>& ranks, double link, double read,
              bool overlaps)
      : run_(run), coordinator_(coordinator), link_(link), read_(read), overlaps_(overlaps) {
    for (const pipeline::RankReady& rank : ranks) {
      streamed_layers_ += rank.streamed_layers();
      sweep_bytes_ += static_cast<double>(rank.streamed_bytes());
      weights_ += static_cast<double>(rank.weight_bytes());
    }
  }

  absl::Status Decode(int batch) {
    std::vector<double> rates;
    for (int round = 0; round < run_.args.repeat; ++round) {
      std::vector<Request> requests;
      for (int i = 0; i < batch; ++i) {
        requests.push_back(RandomRequest(vocab(), 1, run_.args.tokens, 100u + i));
      }
      ASSIGN_OR_RETURN(const auto sinks,
                       Serve(coordinator_, std::move(requests), counters_.Listener()));
      const FullSteps full = WhileAllDecode(sinks);
      rates.push_back(full.tokens / full.seconds);
    }
    const double rate = Median(rates);
    Add(absl::StrCat("decode B=", batch), rate, batch / StepSeconds(), "tok/s",
        streamed_layers_ > 0 ? absl::StrCat("copying ", absl::SixDigits(sweep_bytes_ * 1e-9),
                                            " GB at ", Rate(link_, "B"))
                             : absl::StrCat("reading ", absl::SixDigits(weights_ * 1e-9), " GB at ",
                                            Rate(read_, "B")),
        {{"batch", batch}, {"link_share", rate / batch * sweep_bytes_ / link_}});
    return absl::OkStatus();
  }

  // `resident`: tokens a second with all layers on the device, 0 where that is not known.
  absl::StatusOr<double> Prefill(double resident, double multiply_limit) {
    std::vector<double> rates;
    double bytes = 0;
    for (int round = 0; round < run_.args.repeat; ++round) {
      const double before = counters_.total();
      std::vector<Request> requests;
      requests.push_back(RandomRequest(vocab(), run_.args.prompt, 1, 200u + round));
      ASSIGN_OR_RETURN(const auto sinks,
                       Serve(coordinator_, std::move(requests), counters_.Listener()));
      const Timings& t = sinks[0]->finish->timings;
      rates.push_back(run_.args.prompt / absl::ToDoubleSeconds(t.first_token - t.queued));
      bytes = counters_.total() - before;
    }
    const double rate = Median(rates);
    Add(absl::StrCat("prefill ", run_.args.prompt), rate, resident > 0 ? resident : multiply_limit,
        "tok/s",
        resident > 0 ? "the same with all layers on the device" : "multiplying at the peak rate",
        {{"prompt", run_.args.prompt}, {"sweeps", sweep_bytes_ > 0 ? bytes / sweep_bytes_ : 0}});
    return rate;
  }

 private:
  int vocab() const { return run_.opened.model->config().vocab_size; }

  double StepSeconds() const {
    const double copying = sweep_bytes_ / link_;
    const double reading = weights_ / read_;
    return overlaps_ ? std::max(copying, reading) : copying + reading;
  }

  void Add(const std::string& what, double value, double limit, const char* unit,
           const std::string& limit_by, nlohmann::json more) {
    const int layers = run_.opened.model->config().layers;
    uint64_t peak = 0;
    for (const auto& [rank, bytes] : counters_.peak) peak = std::max(peak, bytes);
    more["resident_layers"] = layers - streamed_layers_;
    more["streamed_layers"] = streamed_layers_;
    more["streamed_bytes"] = sweep_bytes_;
    more["link_bandwidth"] = link_;
    more["peak_device_bytes"] = peak;
    run_.report.Add({.name = absl::StrCat(what, ", ", layers - streamed_layers_, " of ", layers,
                                          " stay, ", HumanBytes(static_cast<double>(peak))),
                     .value = value,
                     .unit = unit,
                     .limit = limit,
                     .limit_by = limit_by,
                     .more = std::move(more)});
  }

  const Run& run_;
  Coordinator& coordinator_;
  const double link_;
  const double read_;
  const bool overlaps_;
  int streamed_layers_ = 0;
  double sweep_bytes_ = 0;
  double weights_ = 0;  // on the devices
  Counters counters_;
};

// Products with the layers' weights alone.
double PrefillOperations(const DecoderModel& model) {
  double parameters = 0;
  for (int l = 0; l < model.config().layers; ++l) {
    for (const MatrixSpec& matrix : model.LayerTensors(l).matrices) {
      parameters += static_cast<double>(matrix.rows()) * static_cast<double>(matrix.cols);
    }
  }
  return 2 * parameters;
}

}  // namespace

absl::Status Offload(const Run& run) {
  const Arguments& args = run.args;
  const int lanes = *std::max_element(args.batch.begin(), args.batch.end());
  ASSIGN_OR_RETURN(
      const PipelineSpec spec,
      MakeSpec(run.options, run.opened,
               {.lanes = lanes, .cache_length = std::max(args.prompt, args.tokens) + 2}));
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(run.options));
  // Those that stay come first: what prefill is compared with.
  std::vector<double> shares = args.resident;
  std::sort(shares.begin(), shares.end(), std::greater<>());
  if (!run.options.device_memory.empty()) shares = {-1};
  double resident_prefill = 0;
  for (const double share : shares) {
    LaunchOptions options = run.options;
    if (share == 0) options.offload = "all";
    if (share >= 0) {
      ASSIGN_OR_RETURN(options.device_memory, MemoryFor(run, spec, ranks, share));
    }
    double link = 0;
    double read = 0;
    double multiply = 0;
    bool overlaps = false;
    {  // given back before the pipeline takes the device
      ASSIGN_OR_RETURN(RankProbes probes, RankProbes::Open(run.options, ranks));
      Describe(run, spec, probes.description(), ranks, probes.threads());
      ASSIGN_OR_RETURN(const auto device,
                       OpenDevice(DeviceOfRank(run.options, ProcessRank()), {.threads = 1}));
      overlaps = !device->memory_is_host();
      ASSIGN_OR_RETURN(link, MeasureLink(*device));
      read = probes.ReadBandwidth() * probes.Share(1);
      multiply = probes.MultiplyRate(spec.dtype);
    }
    RETURN_IF_ERROR(RunPipeline(
        options, run.opened, spec, /*show_progress=*/true,
        [&](Coordinator& coordinator,
            const std::vector<pipeline::RankReady>& ready) -> absl::Status {
          Measurement measurement(run, coordinator, ready, link, read, overlaps);
          for (const int batch : args.batch) RETURN_IF_ERROR(measurement.Decode(batch));
          ASSIGN_OR_RETURN(const double prefill,
                           measurement.Prefill(resident_prefill,
                                               multiply / PrefillOperations(*run.opened.model)));
          if (share == 1) resident_prefill = prefill;
          coordinator.Shutdown();
          return absl::OkStatus();
        }));
  }
  return absl::OkStatus();
}

}  // namespace keyline::bench
