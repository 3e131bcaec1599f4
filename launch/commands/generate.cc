// keyline generate: prompt in, text out, one process, no server.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/collecting_sink.h"
#include "launch/commands/commands.h"
#include "launch/input_text.h"
#include "launch/ranks.h"
#include "launch/report_json.h"
#include "launch/wiring.h"
#include "runtime/engine/engine.h"
#include "runtime/text/chat_template.h"

namespace keyline {
namespace {

struct Arguments {
  std::string prompt;
  std::string prompt_file;
  bool chat = false;
  std::string system;
  bool no_special = false;
  int max_new_tokens = 256;
  int min_new_tokens = 0;
  SamplingParams sampling;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool json = false;
  std::string timing_out;
};

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Arguments& args,
                                                  const Tokenizer& tokenizer) {
  if (args.prompt.empty() == args.prompt_file.empty()) {
    return absl::InvalidArgumentError("give either --prompt or --prompt-file");
  }
  std::string text = args.prompt;
  if (!args.prompt_file.empty()) {
    ASSIGN_OR_RETURN(text, ReadTextFile(args.prompt_file));
  }
  if (args.chat) {
    std::vector<ChatMessage> messages;
    if (!args.system.empty()) messages.push_back({"system", args.system});
    messages.push_back({"user", text});
    return EncodeChat(tokenizer, messages);
  }
  return tokenizer.Encode(text, {.add_bos = true, .parse_special = !args.no_special});
}

void PrintSummary(const CollectingSink& sink, const Request& request) {
  const Finish& finish = *sink.finish;
  const double prefill_s =
      absl::ToDoubleSeconds(finish.timings.first_token - finish.timings.queued);
  const double decode_s = absl::ToDoubleSeconds(finish.timings.total - finish.timings.first_token);
  const int decoded = finish.usage.new_tokens - 1;
  std::fprintf(stderr, "\nprefill  %d tokens in %.3f s, %.1f tok/s\n", finish.usage.prompt_tokens,
               prefill_s, finish.usage.prompt_tokens / prefill_s);
  if (decoded > 0) {
    std::fprintf(stderr, "decode   %d tokens in %.3f s, %.1f tok/s\n", decoded, decode_s,
                 decoded / decode_s);
  }
  std::fprintf(stderr, "finish   %s%s\n", finish.reason == FinishReason::kStop ? "stop" : "length",
               finish.stop.empty() ? "" : absl::StrCat(" (\"", finish.stop, "\")").c_str());
  const CacheReport& cache = *finish.cache;
  const LayerCacheReport& layer = cache.layers.front();
  std::fprintf(
      stderr,
      "cache    %s, %s, chunk %d: %d of %d slots used, %lld tokens evicted per head and layer, "
      "%.1f MiB over %zu layers\n",
      request.cache->policy.c_str(), cache.storage.c_str(), cache.chunk_size, layer.slots_used,
      layer.cache_length, static_cast<long long>(layer.evicted),
      static_cast<double>(cache.lane_bytes) / (1 << 20), cache.layers.size());
}

absl::Status Generate(const LaunchOptions& options, const Arguments& args) {
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(options.model, NeedTokenizer::kYes));
  Request request;
  ASSIGN_OR_RETURN(request.prompt, EncodePrompt(args, *opened.tokenizer));
  request.sampling = args.sampling;
  request.stop = {.max_new_tokens = args.max_new_tokens,
                  .min_new_tokens = args.min_new_tokens,
                  .stop_token_ids = {},
                  .stop_strings = args.stop,
                  .ignore_eos = args.ignore_eos};
  request.response.cache_report = true;
  const int64_t longest = static_cast<int64_t>(request.prompt.size()) + args.max_new_tokens;
  const int64_t positions = opened.model->config().max_positions;
  ASSIGN_OR_RETURN(
      const PipelineSpec spec,
      MakeSpec(options, opened,
               {.lanes = 1, .cache_length = static_cast<int>(std::min(longest, positions))}));
  request.cache = spec.cache.policy;

  TimingFile timing;
  if (!args.timing_out.empty()) {
    ASSIGN_OR_RETURN(timing, TimingFile::Open(args.timing_out));
  }
  return RunPipeline(
      options, opened, spec, /*show_progress=*/true,
      [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>&) -> absl::Status {
        EngineOptions engine_options;
        engine_options.drain_limit = absl::InfiniteDuration();
        if (timing.is_open()) engine_options.on_timing = timing.Listener();
        Engine engine(coordinator, opened.tokenizer.get(), engine_options);
        auto sink = std::make_shared<CollectingSink>([&](const std::string& text) {
          if (args.json) return;
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
        });
        const absl::StatusOr<RequestId> submitted = engine.Submit(request, sink);
        engine.Drain();
        RETURN_IF_ERROR(engine.Run());
        RETURN_IF_ERROR(submitted.status());
        RETURN_IF_ERROR(sink->status);
        if (args.json) {
          const nlohmann::json out = {{"prompt_token_ids", request.prompt},
                                      {"token_ids", sink->tokens},
                                      {"text", sink->text},
                                      {"finish_reason", FinishReasonName(sink->finish->reason)},
                                      {"usage", ToJson(sink->finish->usage)},
                                      {"timings", ToJson(sink->finish->timings)},
                                      {"cache", ToJson(*sink->finish->cache)}};
          std::printf("%s\n", out.dump().c_str());
        } else {
          std::printf("\n");
          PrintSummary(*sink, request);
        }
        return timing.Close();
      });
}

}  // namespace

void AddGenerate(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(app, "generate", "prompt in, text out; no server", chosen,
                             [&options, args] { return Generate(options, *args); });
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  AddOption(sub, "--prompt", args->prompt, "the text to continue");
  AddOption(sub, "--prompt-file", args->prompt_file, "the same from a file");
  AddFlag(sub, "--chat", args->chat,
          "the prompt is a user's message; use the model's chat template");
  AddOption(sub, "--system", args->system, "with --chat: the system message");
  AddFlag(sub, "--no-special", args->no_special, "special tokens in the prompt stay text");
  AddOption(sub, "--max-new-tokens", args->max_new_tokens, "at most so many tokens")
      .Within(1, 1 << 24)
      .ShowDefault();
  AddOption(sub, "--min-new-tokens", args->min_new_tokens, "stops do not count before")
      .Within(0, 1 << 24);
  AddOption(sub, "--temperature", args->sampling.temperature, "0: the likeliest token")
      .Within(0.0, 100.0)
      .ShowDefault();
  AddOption(sub, "--top-k", args->sampling.top_k, "only the k likeliest tokens; 0: all")
      .Within(0, 1 << 24);
  AddOption(sub, "--top-p", args->sampling.top_p, "only the likeliest that reach this probability")
      .Within(0.0, 1.0);
  AddOption(sub, "--min-p", args->sampling.min_p, "only those at least this likely, relatively")
      .Within(0.0, 1.0);
  AddOption(sub, "--seed", args->sampling.seed, "the same seed gives the same tokens");
  AddOption(sub, "--stop", args->stop, "a string that ends the answer; may be repeated");
  AddFlag(sub, "--ignore-eos", args->ignore_eos, "go on after end-of-text");
  AddFlag(sub, "--json", args->json, "one JSON object instead of text");
  AddOption(sub, "--timing-out", args->timing_out,
            "when each rank began and ended each step, JSON");
}

}  // namespace keyline
