// keyline bench: how fast, and how near to what the machine can do. Every row stands beside a limit
// that was measured in the same run. The kinds are in launch/bench.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "launch/commands/commands.h"
#include "launch/ranks.h"
#include "launch/wiring.h"

namespace keyline {
namespace {

using bench::Arguments;

const std::map<std::string, absl::Status (*)(const bench::Run&)> kKinds = {
    {"decode", bench::Decode},      {"prefill", bench::Prefill},  {"attention", bench::Attention},
    {"gemv", bench::Gemv},          {"offload", bench::Offload},  {"hop", bench::Hop},
    {"device", bench::DeviceRates}, {"pipeline", bench::Pipeline}};

absl::Status RunBench(const LaunchOptions& options, const Arguments& args) {
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  PrepareProcess(options, ranks);  // before the probes open devices
  bench::Report report;
  OpenedModel opened;
  if (args.what != "hop" && args.what != "device") {
    if (options.model.empty() == args.shape.empty()) {
      return absl::InvalidArgumentError("give either --model or --shape");
    }
    const int depth = *std::max_element(args.depth.begin(), args.depth.end());
    ASSIGN_OR_RETURN(opened,
                     args.shape.empty()
                         ? OpenModel(options.model, NeedTokenizer::kNo)
                         : OpenShape(args.shape, std::max(depth + args.tokens, args.prompt) + 2));
  }
  RETURN_IF_ERROR(kKinds.at(args.what)({options, args, opened, report}));
  if (ProcessRank() == 0) report.Print(args.json);
  return absl::OkStatus();
}

std::vector<std::string> KindNames() {
  std::vector<std::string> names;
  names.reserve(kKinds.size());
  for (const auto& kind : kKinds) names.push_back(kind.first);
  return names;
}

}  // namespace

void AddBench(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(app, "bench", "speed, beside what the machine can do", chosen,
                             [&options, args] { return RunBench(options, *args); });
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  const auto list = [&sub](const char* name, std::vector<int>& values, int least, int most,
                           const char* help) {
    return AddOption(sub, name, values, help).SeparatedByCommas().Within(least, most).ShowDefault();
  };
  AddWord(sub, "what", args->what,
          "decode, prefill: the engine; attention: a layer's cache; gemv: matrices times "
          "few rows; offload: layers that stream; hop: from rank to rank; device: the limits "
          "themselves; pipeline: any number of ranks, out of the times of stages and hops")
      .OneOf(KindNames())
      .Required();
  AddOption(sub, "--shape", args->shape,
            "random weights of a well-known shape, no checkpoint; gemma3-270m has that model's "
            "numbers in the llama family")
      .OneOf(ShapeNames());
  list("--batch", args->batch, 1, 4096,
       "decode, attention: sequences at a time; gemv: rows; several separated by commas");
  list("--depth", args->depth, 0, 1 << 24, "decode, attention: tokens already in the cache");
  list("--chunk", args->chunk, 1, 1 << 16, "attention: tokens of each sequence; 1 is decoding");
  AddOption(sub, "--policies", args->policies,
            "attention: cache policies, separated by commas [--kv-policy]")
      .SeparatedByCommas();
  AddOption(sub, "--storages", args->storages,
            "attention: cache storages, separated by commas [--kv-storage]")
      .SeparatedByCommas();
  AddOption(sub, "--resident", args->resident,
            "offload: shares of the layers that stay on the device, separated by commas; with "
            "--device-memory: what fits")
      .SeparatedByCommas()
      .Within(0.0, 1.0)
      .ShowDefault();
  AddOption(sub, "--tokens", args->tokens, "decode: new tokens of each sequence")
      .Within(2, 1 << 20)
      .ShowDefault();
  AddOption(sub, "--prompt", args->prompt, "prefill: tokens of the prompt")
      .Within(1, 1 << 24)
      .ShowDefault();
  AddOption(sub, "--repeat", args->repeat, "rounds; the median counts")
      .Within(1, 1000)
      .ShowDefault();
  list("--simulate", args->simulate, 1, 1024,
       "pipeline: numbers of ranks that are predicted, besides those at hand")
      .Values(0, 64);
  AddFlag(sub, "--json", args->json, "a list of {name, value, unit, limit, ratio, ...}");
}

}  // namespace keyline
