// keyline bench: how fast, and how near to what the machine can do. Every row stands beside a limit
// that was measured in the same run.

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/matmul/probe.h"
#include "kernels/device/status_macros.h"
#include "launch/collecting_sink.h"
#include "launch/commands/commands.h"
#include "launch/ranks.h"
#include "launch/wiring.h"
#include "runtime/engine/engine.h"

namespace keyline {
namespace {

struct Arguments {
  std::string what = "decode";
  std::string shape;
  std::vector<int> batch = {1, 8};
  int depth = 0;     // tokens in the cache before decoding begins
  int tokens = 64;   // decoded, per sequence
  int prompt = 512;  // prefilled
  int repeat = 3;
  bool json = false;
};

struct Row {
  std::string name;
  double value;
  std::string unit;
  double limit;
  std::string limit_by;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<int32_t> RandomTokens(int count, int vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

class Bench {
 public:
  Bench(const LaunchOptions& options, const Arguments& args, const OpenedModel& opened)
      : options_(options), args_(args), opened_(opened) {}

  absl::Status Run() {
    const bool decode = args_.what == "decode";
    const int lanes = decode ? *std::max_element(args_.batch.begin(), args_.batch.end()) : 1;
    const int length = decode ? std::max(args_.depth, 1) + args_.tokens + 1 : args_.prompt + 1;
    ASSIGN_OR_RETURN(const PipelineSpec spec,
                     MakeSpec(options_, opened_, {.lanes = lanes, .cache_length = length}));
    spec_ = spec;
    ASSIGN_OR_RETURN(ranks_, NumberOfRanks(options_));
    threads_ = ThreadsOfRank(options_, ranks_) * ranks_;
    return RunPipeline(
        options_, opened_, spec, /*show_progress=*/true,
        [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>& ranks) {
          return decode ? Decode(coordinator, ranks) : Prefill(coordinator);
        });
  }

  void Print() const {
    if (args_.json) {
      nlohmann::json out = nlohmann::json::array();
      for (const Row& row : rows_) {
        out.push_back({{"name", row.name},
                       {"value", row.value},
                       {"unit", row.unit},
                       {"limit", row.limit},
                       {"ratio", row.value / row.limit},
                       {"limit_by", row.limit_by},
                       {"model", opened_.name},
                       {"dtype", std::string(Name(spec_.dtype))},
                       {"policy", spec_.cache.policy.policy},
                       {"storage", spec_.cache.storage},
                       {"ranks", ranks_},
                       {"threads", threads_}});
      }
      std::printf("%s\n", out.dump().c_str());
      return;
    }
    std::printf("%s, %s, cache %s/%s, %d ranks, %d threads\n", opened_.name.c_str(),
                std::string(Name(spec_.dtype)).c_str(), spec_.cache.policy.policy.c_str(),
                spec_.cache.storage.c_str(), ranks_, threads_);
    std::printf("| %-24s | %12s | %-6s | %12s | %5s | %s\n", "work", "median", "unit", "limit",
                "ratio", "limit by");
    for (const Row& row : rows_) {
      std::printf("| %-24s | %12.1f | %-6s | %12.1f | %5.2f | %s\n", row.name.c_str(), row.value,
                  row.unit.c_str(), row.limit, row.value / row.limit, row.limit_by.c_str());
    }
  }

 private:
  // Submits `requests` together and runs them to the end.
  absl::StatusOr<std::vector<std::shared_ptr<CollectingSink>>> Serve(
      Engine& engine, std::vector<Request> requests) {
    // The engine runs on this thread and ends when it is idle, so each round has its own engine.
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (Request& request : requests) {
      sinks.push_back(std::make_shared<CollectingSink>());
      RETURN_IF_ERROR(engine.Submit(std::move(request), sinks.back()).status());
    }
    engine.Drain();
    RETURN_IF_ERROR(engine.Run());
    for (const auto& sink : sinks) RETURN_IF_ERROR(sink->status);
    return sinks;
  }

  static EngineOptions Patient() {
    EngineOptions options;
    options.drain_limit = absl::InfiniteDuration();
    options.stop_workers_at_end = false;
    return options;
  }

  Request NewRequest(int prompt_tokens, int new_tokens, uint32_t seed) const {
    Request request;
    request.prompt = RandomTokens(prompt_tokens, opened_.model->config().vocab_size, seed);
    request.response.text = false;
    request.stop.max_new_tokens = new_tokens;
    request.stop.ignore_eos = true;
    return request;
  }

  // Bytes that one decode step of `batch` sequences reads: all weights once (the embedding only
  // where it is the head too), and each sequence's cache.
  double DecodeBytes(const std::vector<pipeline::RankReady>& ranks, int batch) const {
    const ModelConfig& config = opened_.model->config();
    double weights = 0;
    for (const pipeline::RankReady& rank : ranks) {
      weights += static_cast<double>(rank.weight_bytes());
    }
    if (!config.tied_embeddings || ranks.size() > 1) {
      weights -= static_cast<double>(
          BytesOf(spec_.dtype, int64_t{config.vocab_size} * config.hidden_size));
    }
    const double kv_token = 2.0 * config.layers * config.kv_heads * config.head_dim *
                            static_cast<double>(BytesOf(spec_.dtype, 1));
    return weights + batch * kv_token * (std::max(args_.depth, 1) + args_.tokens / 2.0);
  }

  absl::Status Decode(Coordinator& coordinator, const std::vector<pipeline::RankReady>& ranks) {
    for (int batch : args_.batch) {
      std::vector<double> rates;
      double bandwidth = 0;
      for (int round = 0; round < args_.repeat; ++round) {
        bandwidth = std::max(bandwidth, cpu::MeasureReadBandwidth(threads_));
        Engine engine(coordinator, nullptr, Patient());
        std::vector<Request> requests;
        for (int i = 0; i < batch; ++i) {
          requests.push_back(NewRequest(std::max(args_.depth, 1), args_.tokens, 100u + i));
        }
        ASSIGN_OR_RETURN(const auto sinks, Serve(engine, std::move(requests)));
        // From when all have their first token to the first last one: only full steps count.
        absl::Time begin = absl::InfinitePast();
        absl::Time end = absl::InfiniteFuture();
        for (const auto& sink : sinks) {
          begin = std::max(begin, sink->token_times.front());
          end = std::min(end, sink->token_times.back());
        }
        int64_t tokens = 0;
        for (const auto& sink : sinks) {
          for (absl::Time t : sink->token_times) tokens += t > begin && t <= end ? 1 : 0;
        }
        rates.push_back(static_cast<double>(tokens) / absl::ToDoubleSeconds(end - begin));
      }
      rows_.push_back({.name = absl::StrCat("decode B=", batch, " depth ", args_.depth),
                       .value = Median(rates),
                       .unit = "tok/s",
                       .limit = batch * bandwidth / DecodeBytes(ranks, batch),
                       .limit_by = absl::StrCat(
                           "reading ", static_cast<int>(bandwidth / 1e8) / 10.0, " GB/s")});
    }
    coordinator.Shutdown();
    return absl::OkStatus();
  }

  absl::Status Prefill(Coordinator& coordinator) {
    const ModelConfig& config = opened_.model->config();
    double parameters = 0;  // that every token is multiplied with; the head works on one token only
    for (int l = 0; l < config.layers; ++l) {
      for (const MatrixSpec& matrix : opened_.model->LayerTensors(l).matrices) {
        parameters += static_cast<double>(matrix.rows()) * static_cast<double>(matrix.cols);
      }
    }
    const double attention = 2.0 * args_.prompt * config.layers * config.heads * config.head_dim;
    std::vector<double> rates;
    double peak = 0;
    for (int round = 0; round < args_.repeat; ++round) {
      peak = std::max(peak, cpu::MeasurePeakFlops(spec_.dtype, threads_));
      Engine engine(coordinator, nullptr, Patient());
      std::vector<Request> requests;
      requests.push_back(NewRequest(args_.prompt, 1, 100u + round));
      ASSIGN_OR_RETURN(const auto sinks, Serve(engine, std::move(requests)));
      const Timings& t = sinks[0]->finish->timings;
      rates.push_back(args_.prompt / absl::ToDoubleSeconds(t.first_token - t.queued));
    }
    rows_.push_back(
        {.name = absl::StrCat("prefill ", args_.prompt),
         .value = Median(rates),
         .unit = "tok/s",
         .limit = peak / (2 * parameters + attention),
         .limit_by = absl::StrCat("multiplying ", static_cast<int>(peak / 1e9), " GFLOP/s")});
    coordinator.Shutdown();
    return absl::OkStatus();
  }

  const LaunchOptions& options_;
  const Arguments& args_;
  const OpenedModel& opened_;
  PipelineSpec spec_;
  int ranks_ = 1;
  int threads_ = 1;
  std::vector<Row> rows_;
};

absl::Status RunBench(const LaunchOptions& options, const Arguments& args) {
  if (options.model.empty() == args.shape.empty()) {
    return absl::InvalidArgumentError("give either --model or --shape");
  }
  absl::StatusOr<OpenedModel> opened =
      args.shape.empty() ? OpenModel(options.model, NeedTokenizer::kNo) : OpenShape(args.shape);
  RETURN_IF_ERROR(opened.status());
  Bench bench(options, args, *opened);
  RETURN_IF_ERROR(bench.Run());
  if (ProcessRank() == 0) bench.Print();
  return absl::OkStatus();
}

}  // namespace

void AddBench(CLI::App& app, LaunchOptions& options, Command& chosen) {
  CLI::App& sub = *app.add_subcommand("bench", "speed, beside what the machine can do");
  auto args = std::make_shared<Arguments>();
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  sub.add_option("what", args->what, "decode or prefill")
      ->check(CLI::IsMember({"decode", "prefill"}))
      ->required();
  AddOption(sub, "--shape", args->shape, "random weights of a well-known shape, no checkpoint")
      ->check(CLI::IsMember(ShapeNames()));
  AddOption(sub, "--batch", args->batch, "decode: sequences at a time, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  AddOption(sub, "--depth", args->depth, "decode: tokens already in the cache")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  AddOption(sub, "--tokens", args->tokens, "decode: new tokens of each sequence")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  AddOption(sub, "--prompt", args->prompt, "prefill: tokens of the prompt")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  AddOption(sub, "--repeat", args->repeat, "rounds; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  AddFlag(sub, "--json", args->json, "a list of {name, value, unit, limit, ratio, ...}");
  sub.callback([&options, &chosen, args] {
    chosen = [&options, args] { return RunBench(options, *args); };
  });
}

}  // namespace keyline
