// keyline score: log-probabilities of given tokens under a cache policy (teacher forcing).

#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
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
#include "runtime/files/safetensors/safetensors_writer.h"
#include "runtime/files/token_ids_file.h"

namespace keyline {
namespace {

struct Arguments {
  std::string text;
  std::string file;
  std::string token_ids;
  bool no_bos = false;
  bool no_special = false;
  int decode_tail = 0;
  std::string logits_out;
  std::string logprobs_out;
  std::string trace_out;
  std::string timing_out;
  bool json = false;
};

using Sequences = std::vector<std::vector<int32_t>>;
using Results = std::vector<ScoreResult>;

absl::StatusOr<Sequences> GivenTokens(const Arguments& args, const Tokenizer* tokenizer) {
  const int given =
      (args.text.empty() ? 0 : 1) + (args.file.empty() ? 0 : 1) + (args.token_ids.empty() ? 0 : 1);
  if (given != 1) {
    return absl::InvalidArgumentError("give one of --text, --file and --token-ids");
  }
  if (!args.token_ids.empty()) return ReadTokenIds(args.token_ids);
  std::string text = args.text;
  if (!args.file.empty()) {
    ASSIGN_OR_RETURN(text, ReadTextFile(args.file));
  }
  ASSIGN_OR_RETURN(
      std::vector<int32_t> ids,
      tokenizer->Encode(text, {.add_bos = !args.no_bos, .parse_special = !args.no_special}));
  return Sequences{std::move(ids)};
}

// Tensors [sequences, ...] need sequences of one length.
absl::Status CheckRectangular(const Arguments& args, const Sequences& sequences) {
  if (args.logits_out.empty() && args.logprobs_out.empty()) return absl::OkStatus();
  for (size_t i = 1; i < sequences.size(); ++i) {
    if (sequences[i].size() == sequences[0].size()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--logits-out, --logprobs-out: sequence ", i, " has ", sequences[i].size(),
        " tokens, sequence 0 has ", sequences[0].size(), "; a tensor needs equal lengths"));
  }
  return absl::OkStatus();
}

absl::Status WriteTensor(const std::string& path, const std::string& name,
                         std::vector<int64_t> shape,
                         const std::vector<std::span<const float>>& sequences) {
  ASSIGN_OR_RETURN(SafetensorsWriter writer,
                   SafetensorsWriter::Create(path, {{name, DType::kF32, std::move(shape)}}));
  for (const std::span<const float> values : sequences) RETURN_IF_ERROR(writer.Append(values));
  return writer.Finish();
}

absl::Status WriteTrace(const std::string& path, const Results& results) {
  nlohmann::json sequences = nlohmann::json::array();
  for (const ScoreResult& result : results) {
    nlohmann::json chunks = nlohmann::json::array();
    for (const ChunkTrace& chunk : result.trace) {
      nlohmann::json layers = nlohmann::json::array();
      for (const auto& kept : chunk.kept) layers.push_back({{"kept", kept}});
      chunks.push_back(
          {{"start", chunk.start}, {"tokens", chunk.tokens}, {"layers", std::move(layers)}});
    }
    sequences.push_back({{"chunks", std::move(chunks)}});
  }
  return WriteJsonFile(path, {{"sequences", std::move(sequences)}});
}

void Print(const Arguments& args, const Sequences& sequences, const Results& results) {
  nlohmann::json out = nlohmann::json::array();
  double nll = 0;
  size_t scored = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    double sum = 0;
    for (float logprob : results[i].logprobs) sum -= logprob;
    nll += sum;
    scored += results[i].logprobs.size();
    if (!args.json) continue;
    out.push_back(
        {{"token_ids", sequences[i]},
         {"logprobs", results[i].logprobs},
         {"mean_nll", results[i].logprobs.empty() ? 0 : sum / results[i].logprobs.size()}});
  }
  const double mean = scored == 0 ? 0 : nll / static_cast<double>(scored);
  if (args.json) {
    std::printf("%s\n", nlohmann::json{{"sequences", std::move(out)},
                                       {"mean_nll", mean},
                                       {"perplexity", std::exp(mean)}}
                            .dump()
                            .c_str());
  } else {
    std::printf("%zu tokens scored, mean NLL %.5f, perplexity %.4f\n", scored, mean,
                std::exp(mean));
  }
}

absl::Status Score(const LaunchOptions& options, const Arguments& args) {
  ASSIGN_OR_RETURN(
      const OpenedModel opened,
      OpenModel(options.model, args.token_ids.empty() ? NeedTokenizer::kYes : NeedTokenizer::kNo));
  ASSIGN_OR_RETURN(const Sequences sequences, GivenTokens(args, opened.tokenizer.get()));
  RETURN_IF_ERROR(CheckRectangular(args, sequences));
  size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  const int lanes = static_cast<int>(sequences.size());
  PipelineNeeds needs{.lanes = lanes, .cache_length = static_cast<int>(longest)};
  LaunchOptions launch = options;
  // This policy decides for all lanes together, so they must stay abreast: whole chunks of all of
  // them in every step, one step at a time.
  if (options.kv.policy == "h2o_original") {
    needs.max_pass_tokens = lanes * static_cast<int>(longest);
    launch.pipeline_depth = 1;
  }
  ASSIGN_OR_RETURN(const PipelineSpec spec, MakeSpec(launch, opened, needs));
  TimingFile timing;
  if (!args.timing_out.empty()) {
    ASSIGN_OR_RETURN(timing, TimingFile::Open(args.timing_out));
  }

  return RunPipeline(
      launch, opened, spec, /*show_progress=*/true,
      [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>&) -> absl::Status {
        EngineOptions engine_options;
        engine_options.drain_limit = absl::InfiniteDuration();
        engine_options.max_queued_requests = lanes;
        engine_options.max_queued_tokens = INT64_MAX;
        if (timing.is_open()) engine_options.on_timing = timing.Listener();
        Engine engine(coordinator, opened.tokenizer.get(), engine_options);
        std::vector<std::shared_ptr<CollectingSink>> sinks;
        absl::Status submitted;
        for (const auto& sequence : sequences) {
          Request request;
          request.prompt = sequence;
          request.response.text = false;
          request.score = {.enabled = true,
                           .logits = !args.logits_out.empty(),
                           .trace = !args.trace_out.empty(),
                           .decode_tail = args.decode_tail};
          sinks.push_back(std::make_shared<CollectingSink>());
          submitted.Update(engine.Submit(std::move(request), sinks.back()).status());
        }
        engine.Drain();
        RETURN_IF_ERROR(engine.Run());
        RETURN_IF_ERROR(submitted);
        Results results;
        std::vector<std::span<const float>> logits;
        std::vector<std::span<const float>> logprobs;
        for (const auto& sink : sinks) {
          RETURN_IF_ERROR(sink->status);
          results.push_back(std::move(*sink->finish->score));
          logits.push_back(sink->logits);
          logprobs.push_back(results.back().logprobs);
        }
        const auto tokens = static_cast<int64_t>(longest);
        if (!args.logits_out.empty()) {
          RETURN_IF_ERROR(WriteTensor(args.logits_out, "logits",
                                      {lanes, tokens, opened.model->config().vocab_size}, logits));
        }
        if (!args.logprobs_out.empty()) {
          RETURN_IF_ERROR(
              WriteTensor(args.logprobs_out, "logprobs", {lanes, tokens - 1}, logprobs));
        }
        if (!args.trace_out.empty()) RETURN_IF_ERROR(WriteTrace(args.trace_out, results));
        Print(args, sequences, results);
        return timing.Close();
      });
}

}  // namespace

void AddScore(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(app, "score", "log-probabilities of given tokens under a cache policy",
                             chosen, [&options, args] { return Score(options, *args); });
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  AddOption(sub, "--text", args->text, "the text to score");
  AddOption(sub, "--file", args->file, "the same from a file");
  AddOption(sub, "--token-ids", args->token_ids,
            "token ids: safetensors (token_ids [sequences, tokens]) or JSON");
  AddFlag(sub, "--no-bos", args->no_bos, "put no BOS first");
  AddFlag(sub, "--no-special", args->no_special, "special tokens in the text stay text");
  AddOption(sub, "--decode-tail", args->decode_tail, "feed the last so many tokens one by one")
      .Within(0, 1 << 24);
  AddOption(sub, "--logits-out", args->logits_out,
            "safetensors: logits float32 [sequences, tokens, vocab]");
  AddOption(sub, "--logprobs-out", args->logprobs_out,
            "safetensors: logprobs float32 [sequences, tokens - 1]");
  AddOption(sub, "--trace-out", args->trace_out, "JSON: positions kept after every chunk");
  AddOption(sub, "--timing-out", args->timing_out,
            "when each rank began and ended each step, JSON");
  AddFlag(sub, "--json", args->json, "print JSON");
}

}  // namespace keyline
