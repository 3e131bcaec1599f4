// keyline selftest: the same requests on 1..N ranks, alone and in a batch, at every pipeline depth,
// with resident and with streamed layers: tokens, kept sets and log-probabilities must be equal. On
// GPUs that holds with --deterministic, which is implied.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/collecting_sink.h"
#include "launch/commands/commands.h"
#include "launch/ranks.h"
#include "launch/wiring.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/communicator.h"

namespace keyline {
namespace {

struct Arguments {
  int max_new_tokens = 24;
};

constexpr int kRequests = 8;

// Eight requests of different lengths, greedy and sampled; the last is scored, with a trace.
std::vector<Request> MixedRequests(const OpenedModel& opened, int max_new_tokens) {
  std::mt19937 random(7);
  std::vector<int32_t> text;
  if (opened.tokenizer != nullptr) {
    const auto encoded = opened.tokenizer->Encode(
        "The pipeline carries hidden states from rank to rank, and every rank keeps the keys and "
        "values of its own layers. What a sequence hears must not depend on who else is served, on "
        "how many ranks there are, or on how many steps are in flight.",
        {.add_bos = true, .parse_special = false});
    if (encoded.ok()) text = *encoded;
  }
  while (text.size() < 64) {
    text.push_back(static_cast<int32_t>(random() % opened.model->config().vocab_size));
  }
  std::vector<Request> requests(kRequests);
  for (int i = 0; i < kRequests; ++i) {
    Request& request = requests[i];
    const size_t length = 1 + (static_cast<size_t>(i) * 13) % text.size();
    request.prompt.assign(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(length));
    request.response.text = false;
    request.stop.max_new_tokens = max_new_tokens - i;
    request.stop.ignore_eos = true;
    if (i % 2 == 1) {
      request.sampling = {.temperature = 0.8f + 0.1f * static_cast<float>(i),
                          .top_k = i % 4 == 1 ? 40 : 0,
                          .top_p = 0.9f,
                          .min_p = i == 7 ? 0.02f : 0.0f,
                          .seed = 1000u + i};
    }
  }
  Request& scored = requests.back();
  scored.prompt = text;
  scored.score = {.enabled = true, .trace = true, .decode_tail = 5};
  return requests;
}

// What a request led to, comparable across runs.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<std::vector<std::vector<int32_t>>>> kept;
};

// What is not the same; "": all is.
std::string Difference(const Outcome& a, const Outcome& b) {
  if (a.tokens != b.tokens) return "tokens";
  if (a.kept != b.kept) return "kept positions";
  if (a.logprobs == b.logprobs) return "";
  if (a.logprobs.size() != b.logprobs.size()) return "number of log-probabilities";
  float most = 0;
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    most = std::max(most, std::abs(a.logprobs[i] - b.logprobs[i]));
  }
  return absl::StrCat("log-probabilities, by up to ", most);
}

absl::StatusOr<std::vector<Outcome>> RunAll(const LaunchOptions& options, const OpenedModel& opened,
                                            const std::vector<Request>& requests) {
  size_t longest = 0;
  for (const Request& request : requests) {
    longest = std::max(longest, request.prompt.size() + request.stop.max_new_tokens);
  }
  ASSIGN_OR_RETURN(const PipelineSpec spec,
                   MakeSpec(options, opened, {.cache_length = static_cast<int>(longest)}));
  std::vector<Outcome> outcomes;
  RETURN_IF_ERROR(RunPipeline(
      options, opened, spec, /*show_progress=*/false,
      [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>&) -> absl::Status {
        EngineOptions engine_options;
        engine_options.drain_limit = absl::InfiniteDuration();
        Engine engine(coordinator, nullptr, engine_options);
        std::vector<std::shared_ptr<CollectingSink>> sinks;
        absl::Status submitted;
        for (const Request& request : requests) {
          sinks.push_back(std::make_shared<CollectingSink>());
          submitted.Update(engine.Submit(request, sinks.back()).status());
        }
        engine.Drain();
        RETURN_IF_ERROR(engine.Run());
        RETURN_IF_ERROR(submitted);
        for (const auto& sink : sinks) {
          RETURN_IF_ERROR(sink->status);
          Outcome& outcome = outcomes.emplace_back();
          outcome.tokens = sink->tokens;
          if (!sink->finish->score.has_value()) continue;
          outcome.logprobs = sink->finish->score->logprobs;
          for (const ChunkTrace& chunk : sink->finish->score->trace) {
            outcome.kept.push_back(chunk.kept);
          }
        }
        return absl::OkStatus();
      }));
  return outcomes;
}

absl::Status Selftest(LaunchOptions options, const Arguments& args) {
  options.deterministic = true;
  if (StartedByMpi()) {
    return absl::FailedPreconditionError(
        "selftest plays all ranks as threads; run it without mpirun, with --ranks N");
  }
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(options.model, NeedTokenizer::kNo));
  const std::vector<Request> requests = MixedRequests(opened, args.max_new_tokens);
  ASSIGN_OR_RETURN(const int most_ranks, NumberOfRanks(options));

  // The expectation: one after the other on one lane, one rank, one step at a time.
  LaunchOptions plain = options;
  plain.ranks = 1;
  plain.lanes = 1;
  plain.pipeline_depth = 1;
  ASSIGN_OR_RETURN(const std::vector<Outcome> expected, RunAll(plain, opened, requests));
  int failures = 0;
  const auto compare = [&](const std::string& what, const LaunchOptions& changed) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<Outcome> got, RunAll(changed, opened, requests));
    std::string differs;  // a line for each request
    for (size_t i = 0; i < requests.size(); ++i) {
      const std::string of_request = Difference(expected.at(i), got.at(i));
      if (of_request.empty()) continue;
      absl::StrAppend(&differs, "     request ", i, " differs: ", of_request, "\n");
    }
    failures += differs.empty() ? 0 : 1;
    std::printf("%s %s\n%s", differs.empty() ? "ok  " : "FAIL", what.c_str(), differs.c_str());
    std::fflush(stdout);
    return absl::OkStatus();
  };
  for (int ranks = 1; ranks <= most_ranks; ++ranks) {
    LaunchOptions streamed = options;
    streamed.ranks = ranks;
    streamed.lanes = 3;
    streamed.offload = "all";
    RETURN_IF_ERROR(compare(absl::StrCat(ranks, " ranks, all layers streamed"), streamed));
    for (int lanes : {1, 3, kRequests}) {
      for (int depth : std::set<int>{1, ranks, ranks + 2}) {
        LaunchOptions changed = options;
        changed.ranks = ranks;
        changed.lanes = lanes;
        changed.pipeline_depth = depth;
        RETURN_IF_ERROR(compare(
            absl::StrCat(ranks, " ranks, ", lanes, " lanes, pipeline depth ", depth), changed));
      }
    }
  }
  if (failures > 0) {
    return absl::InternalError(absl::StrCat(failures, " of the runs differ from the first"));
  }
  std::printf("all runs agree\n");
  return absl::OkStatus();
}

}  // namespace

void AddSelftest(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(
      app, "selftest",
      "the same requests on 1..N ranks, resident and streamed, alone and batched: results must "
      "agree",
      chosen, [&options, args] { return Selftest(options, *args); });
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  AddOption(sub, "--max-new-tokens", args->max_new_tokens, "tokens of each request")
      .Within(kRequests, 1 << 20)
      .ShowDefault();
}

}  // namespace keyline
