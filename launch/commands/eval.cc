// keyline eval: the price of eviction on a text: windows of it, teacher-forced under every
// configuration, against a dense plain cache of the same windows.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/commands/commands.h"
#include "launch/eval/reference_logits.h"
#include "launch/eval/svg_plot.h"
#include "launch/eval/table.h"
#include "launch/input_text.h"
#include "launch/ranks.h"
#include "launch/report_json.h"
#include "launch/wiring.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/chunk_plan.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/engine/engine.h"
#include "runtime/files/token_ids_file.h"
#include "runtime/transport/communicator.h"

namespace keyline {
namespace {

struct Arguments {
  std::string file;
  std::string token_ids;
  int windows = 0;  // at most; 0: all
  EvalAxes axes;
  std::string scratch;
  std::string out;
  std::string json_out;
  std::string svg_out;
};

// Lanes unless told otherwise: several windows a step read the weights once.
constexpr int kEvalLanes = 4;

using Windows = std::vector<std::vector<int32_t>>;

// Whole windows of every sequence, each with `bos` first if there is one; what is left over at a
// sequence's end is dropped. At most `most`, if not 0.
Windows CutWindows(const Windows& sequences, int32_t bos, int window, int most) {
  Windows windows;
  const int fresh = window - (bos >= 0 ? 1 : 0);
  for (const auto& sequence : sequences) {
    for (auto rest = std::span<const int32_t>(sequence); rest.size() >= static_cast<size_t>(fresh);
         rest = rest.subspan(fresh)) {
      if (most > 0 && static_cast<int>(windows.size()) == most) return windows;
      std::vector<int32_t>& ids = windows.emplace_back();
      if (bos >= 0) ids.push_back(bos);
      ids.insert(ids.end(), rest.begin(), rest.begin() + fresh);
    }
  }
  return windows;
}

absl::StatusOr<Windows> GivenWindows(const Arguments& args, const Tokenizer* tokenizer) {
  Windows sequences;
  int32_t bos = -1;
  if (args.file.empty() == args.token_ids.empty()) {
    return absl::InvalidArgumentError("give one of --file and --token-ids");
  }
  if (args.file.empty()) {
    ASSIGN_OR_RETURN(sequences, ReadTokenIds(args.token_ids));
  } else {
    ASSIGN_OR_RETURN(const std::string text, ReadTextFile(args.file));
    ASSIGN_OR_RETURN(sequences.emplace_back(), tokenizer->Encode(text, {.add_bos = false}));
    // Only vocabularies that begin a text with BOS get one.
    ASSIGN_OR_RETURN(const std::vector<int32_t> start, tokenizer->Encode("", {.add_bos = true}));
    if (!start.empty() && start[0] == tokenizer->bos_id()) bos = start[0];
  }
  Windows windows = CutWindows(sequences, bos, args.axes.window, args.windows);
  if (windows.empty()) {
    size_t longest = 0;
    for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
    return absl::InvalidArgumentError(absl::StrCat(
        "--window: ", args.axes.window, " tokens, and the longest sequence given has ", longest));
  }
  return windows;
}

// Hears one window: keeps the reference's logits, or measures the distance from them.
class WindowSink : public TokenSink {
 public:
  enum class Role { kReference, kMeasured };
  WindowSink(ReferenceLogits& reference, Role role, int window, int vocab)
      : reference_(reference), role_(role), window_(window), vocab_(vocab) {}

  void OnTokens(const TokenDelta&) override {}
  void OnLogits(int first, std::span<const float> rows) override {
    if (!status_.ok()) return;
    if (role_ == Role::kReference) {
      score_.divergence.resize(score_.divergence.size() + rows.size() / vocab_, 0.0);
      status_ = reference_.Write(window_, first, rows);
      return;
    }
    std::vector<float> dense(rows.size());
    status_ = reference_.Read(window_, first, dense);
    for (size_t at = 0; at < rows.size(); at += vocab_) {
      score_.divergence.push_back(
          Divergence(std::span<const float>(dense).subspan(at, vocab_), rows.subspan(at, vocab_)));
    }
  }
  void OnFinish(const Finish& finish) override { score_.logprobs = finish.score->logprobs; }
  void OnError(const absl::Status& error) override { status_ = error; }

  absl::StatusOr<WindowScore> Take() {
    if (!status_.ok()) return status_;
    return std::move(score_);
  }

 private:
  ReferenceLogits& reference_;
  const Role role_;
  const int window_;
  const size_t vocab_;
  WindowScore score_;
  absl::Status status_;
};

class Eval {
 public:
  Eval(const LaunchOptions& options, const OpenedModel& opened, Windows windows,
       std::vector<EvalPoint> points, ReferenceLogits reference)
      : options_(options),
        opened_(opened),
        windows_(std::move(windows)),
        window_(static_cast<int>(windows_[0].size())),
        points_(std::move(points)),
        reference_logits_(std::move(reference)) {
    dense_.policy.policy = "dense";
    dense_.policy.cache_length = {window_};
    dense_.storage = "plain";
    dense_.label = "dense";
  }

  // Everything that can be refused, before anything is loaded; and the bytes of every row.
  absl::StatusOr<EvalTable> Prepare() const {
    EvalTable table;
    table.windows = static_cast<int>(windows_.size());
    table.window = window_;
    ASSIGN_OR_RETURN(const PipelineSpec dense, SpecFor("plain", {dense_}));
    ASSIGN_OR_RETURN(table.dense_bytes, LaneBytes(*opened_.model, dense));
    table.title = absl::StrCat(opened_.name, ", ", std::string(Name(dense.dtype)));
    for (const EvalPoint& point : points_) {
      EvalRow row{.point = point, .all = {}, .evicted = {}};
      ASSIGN_OR_RETURN(PipelineSpec spec, SpecFor(point.storage, {point}));
      RETURN_IF_ERROR(ValidateLane(spec.cache, spec.cache_lengths, point.policy, window_, 0,
                                   spec.max_pass_tokens));
      // A cache of this configuration alone, not the lane that it shares with others here.
      spec.cache.policy = point.policy;
      spec.cache.enabled.clear();
      std::fill(spec.cache_lengths.begin(), spec.cache_lengths.end(), point.length());
      ASSIGN_OR_RETURN(row.lane_bytes, LaneBytes(*opened_.model, spec));
      table.rows.push_back(std::move(row));
    }
    return table;
  }

  // Loads once a storage; plain first, because all others are compared with it.
  absl::Status Run(EvalTable& table) {
    std::vector<std::string> storages = {"plain"};
    for (const EvalPoint& point : points_) {
      if (std::find(storages.begin(), storages.end(), point.storage) == storages.end()) {
        storages.push_back(point.storage);
      }
    }
    for (const std::string& storage : storages) {
      std::vector<EvalPoint> here = {dense_};
      for (const EvalPoint& point : points_) {
        if (point.storage == storage) here.push_back(point);
      }
      ASSIGN_OR_RETURN(const PipelineSpec spec, SpecFor(storage, here));
      RETURN_IF_ERROR(
          RunPipeline(options_, opened_, spec, /*show_progress=*/true,
                      [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>&) {
                        const absl::Status status = RunStorage(coordinator, storage, table);
                        coordinator.Shutdown();
                        return status;
                      }));
    }
    return absl::OkStatus();
  }

 private:
  // Lanes that can serve every one of `points`.
  absl::StatusOr<PipelineSpec> SpecFor(const std::string& storage,
                                       const std::vector<EvalPoint>& points) const {
    LaunchOptions launch = options_;
    launch.kv = dense_.policy;
    launch.kv.chunk_size = options_.kv.chunk_size;
    launch.kv_cache_length = {window_};
    launch.kv_storage = storage;
    launch.kv_protect.clear();
    launch.kv_enabled.clear();
    for (const EvalPoint& point : points) launch.kv_enabled.push_back(point.policy.policy);
    const int lanes = options_.lanes > 0 ? options_.lanes
                                         : std::min(kEvalLanes, static_cast<int>(windows_.size()));
    return MakeSpec(
        launch, opened_,
        {.lanes = lanes,
         .max_pass_tokens =
             lanes * (options_.kv.chunk_size.value_or(kDefaultChunkSize) + kChunkOvershoot)});
  }

  absl::Status RunStorage(Coordinator& coordinator, const std::string& storage, EvalTable& table) {
    if (storage == "plain") {
      ASSIGN_OR_RETURN(reference_,
                       ScoreAll(coordinator, dense_.policy, WindowSink::Role::kReference));
      Say(dense_, Compare(reference_, reference_, 0));
    }
    for (EvalRow& row : table.rows) {
      if (row.point.storage != storage) continue;
      // A dense plain cache as long as the window is the reference itself.
      const bool is_reference = row.point.policy.policy == "dense" && storage == "plain";
      std::vector<WindowScore> scores;
      if (!is_reference) {
        ASSIGN_OR_RETURN(scores,
                         ScoreAll(coordinator, row.point.policy, WindowSink::Role::kMeasured));
      }
      const std::vector<WindowScore>& measured = is_reference ? reference_ : scores;
      row.all = Compare(reference_, measured, 0);
      row.evicted = Compare(reference_, measured, row.point.length());
      if (!is_reference) Say(row.point, row.all);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<WindowScore>> ScoreAll(Coordinator& coordinator,
                                                    const LanePolicy& policy,
                                                    WindowSink::Role role) {
    EngineOptions engine_options;
    engine_options.drain_limit = absl::InfiniteDuration();
    engine_options.max_queued_requests = static_cast<int>(windows_.size());
    engine_options.max_queued_tokens = INT64_MAX;
    engine_options.stop_workers_at_end = false;
    Engine engine(coordinator, nullptr, engine_options);
    std::vector<std::shared_ptr<WindowSink>> sinks;
    absl::Status submitted;
    for (size_t w = 0; w < windows_.size(); ++w) {
      Request request;
      request.prompt = windows_[w];
      request.cache = policy;
      request.response.text = false;
      request.score = {.enabled = true, .logits = true};
      sinks.push_back(std::make_shared<WindowSink>(reference_logits_, role, static_cast<int>(w),
                                                   opened_.model->config().vocab_size));
      submitted.Update(engine.Submit(std::move(request), sinks.back()).status());
    }
    engine.Drain();
    RETURN_IF_ERROR(engine.Run());
    RETURN_IF_ERROR(submitted);
    std::vector<WindowScore> scores;
    for (const auto& sink : sinks) {
      ASSIGN_OR_RETURN(scores.emplace_back(), sink->Take());
    }
    return scores;
  }

  // A line as each configuration ends: a whole table may take an hour.
  static void Say(const EvalPoint& point, const Price& price) {
    std::fprintf(stderr, "%s %s %d slots: perplexity %.3f, KL %.4f\n", point.label.c_str(),
                 point.storage.c_str(), point.length(), std::exp(price.nll), price.divergence);
  }

  const LaunchOptions& options_;
  const OpenedModel& opened_;
  const Windows windows_;
  const int window_;
  const std::vector<EvalPoint> points_;
  EvalPoint dense_;
  ReferenceLogits reference_logits_;
  std::vector<WindowScore> reference_;
};

absl::Status RunEval(const LaunchOptions& options, Arguments args) {
  if (StartedByMpi()) {
    return absl::FailedPreconditionError(
        "eval plays all ranks as threads; run it without mpirun, with --ranks N");
  }
  ASSIGN_OR_RETURN(
      const OpenedModel opened,
      OpenModel(options.model, args.file.empty() ? NeedTokenizer::kNo : NeedTokenizer::kYes));
  const ModelConfig& config = opened.model->config();
  if (args.axes.window == 0) args.axes.window = static_cast<int>(config.max_positions);
  args.axes.rest = options.kv;
  if (args.axes.fractions.empty() && args.axes.lengths.empty()) {
    args.axes.fractions = {"1/2", "1/4", "1/8"};
  }
  ASSIGN_OR_RETURN(std::vector<EvalPoint> points, EvalGrid(args.axes));
  if (points.empty()) {
    return absl::InvalidArgumentError(
        "--policies, --storages: no pair of them exists; qh2o and qh2o_vnorm need int8, int4 or "
        "k8v4");
  }
  ASSIGN_OR_RETURN(Windows windows, GivenWindows(args, opened.tokenizer.get()));
  if (args.scratch.empty()) args.scratch = std::filesystem::temp_directory_path();
  ASSIGN_OR_RETURN(ReferenceLogits reference,
                   ReferenceLogits::Create(args.scratch, static_cast<int>(windows.size()),
                                           args.axes.window, config.vocab_size));

  Eval eval(options, opened, std::move(windows), std::move(points), std::move(reference));
  ASSIGN_OR_RETURN(EvalTable table, eval.Prepare());
  const std::string& text = args.file.empty() ? args.token_ids : args.file;
  absl::StrAppend(&table.title, ", ", std::filesystem::path(text).filename().string());
  RETURN_IF_ERROR(eval.Run(table));

  if (args.out.empty()) {
    std::fputs(ToMarkdown(table).c_str(), stdout);
  } else {
    RETURN_IF_ERROR(WriteTextFile(args.out, ToMarkdown(table)));
  }
  if (!args.json_out.empty()) RETURN_IF_ERROR(WriteJsonFile(args.json_out, ToJson(table)));
  if (!args.svg_out.empty()) RETURN_IF_ERROR(WriteTextFile(args.svg_out, ToSvg(ToPlot(table))));
  return absl::OkStatus();
}

}  // namespace

void AddEval(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(
      app, "eval", "the price of eviction on a text: policies, storages and lengths against dense",
      chosen, [&options, args] { return RunEval(options, *args); });
  EvalAxes& axes = args->axes;
  axes.policies = {"dense", "last_recent", "h2o", "h2o_vnorm+norm"};
  axes.storages = {"plain", "int8"};
  axes.grace = "1/4";
  AddModelOptions(sub, options);
  AddOption(sub, "--file", args->file, "the text");
  AddOption(sub, "--token-ids", args->token_ids,
            "token ids instead: safetensors (token_ids [sequences, tokens]) or JSON");
  AddOption(sub, "--window", axes.window,
            "tokens of each window of the text; default: the model's positions")
      .Within(2, 1 << 24);
  AddOption(sub, "--windows", args->windows, "most windows; default: the whole text")
      .Within(1, 1 << 24);
  AddOption(sub, "--policies", axes.policies,
            "cache policies, separated by commas; POLICY+norm ranks by normalised scores")
      .SeparatedByCommas()
      .ShowDefault();
  AddOption(sub, "--storages", axes.storages, "number formats of keys and values")
      .SeparatedByCommas()
      .OneOf(CacheStorageNames())
      .ShowDefault();
  const Flag fractions =
      AddOption(sub, "--fractions", axes.fractions,
                "cache lengths as shares of the window, such as 1/2,0.25; default: 1/2,1/4,1/8");
  fractions.SeparatedByCommas();
  AddOption(sub, "--lengths", axes.lengths, "cache lengths as slots instead")
      .SeparatedByCommas()
      .Excludes(fractions);
  AddOption(sub, "--grace", axes.grace,
            "slots of the ring of most recent tokens, as a share of the cache length")
      .ShowDefault();
  AddOption(
      sub, "--kv-chunk", options.kv.chunk_size,
      "tokens of a window's chunks after the first; default: 512, or the largest that fits each "
      "policy and length")
      .Within(1, 1 << 20);
  AddOption(sub, "--kv-sinks", options.kv.sinks, "first slots that are never evicted")
      .Within(0, 1 << 24);
  AddOption(sub, "--scratch", args->scratch,
            "folder for the dense cache's logits, 4 bytes x tokens x vocabulary; default: the "
            "system's for temporary files");
  AddOption(sub, "--out", args->out, "Markdown table; default: standard output");
  AddOption(sub, "--json-out", args->json_out, "JSON: a list, one entry for each row");
  AddOption(sub, "--svg-out", args->svg_out, "SVG: KL against bytes of a lane");
}

}  // namespace keyline
