// keyline client: a gRPC client of a running server.

#include <google/protobuf/util/json_util.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "launch/commands/client_sessions.h"
#include "launch/commands/commands.h"
#include "launch/input_text.h"
#include "launch/placement_report.h"
#include "rpc/client/client.h"

namespace keyline {
namespace {

struct Arguments {
  std::string what;
  std::string server = "127.0.0.1:50051";
  ClientOptions connection;
  double timeout_seconds = 0;
  double wait_seconds = 30;
  std::string prompt;
  std::string prompt_file;
  std::vector<uint32_t> token_ids;
  bool chat = false;
  std::string system;
  bool special = false;
  unsigned max_new_tokens = 256;
  float temperature = 0;
  unsigned top_k = 0;
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  int layer = -1;
  std::string pooling = "last";
  bool ignore_eos = false;
  bool json = false;
  std::string session;
  std::string prefix;
  bool share_system = false;
  SessionArguments sessions;
};

absl::Status FillPrompt(const Arguments& args, v1::Prompt& prompt) {
  const int given = (args.prompt.empty() ? 0 : 1) + (args.prompt_file.empty() ? 0 : 1) +
                    (args.token_ids.empty() ? 0 : 1);
  if (given != 1) {
    return absl::InvalidArgumentError("give one of --prompt, --prompt-file and --token-ids");
  }
  if (!args.token_ids.empty()) {
    prompt.mutable_token_ids()->mutable_ids()->Assign(args.token_ids.begin(), args.token_ids.end());
    return absl::OkStatus();
  }
  std::string text = args.prompt;
  if (!args.prompt_file.empty()) {
    ASSIGN_OR_RETURN(text, ReadTextFile(args.prompt_file));
  }
  if (!args.chat) {
    prompt.set_text(std::move(text));
    if (args.special) prompt.set_parse_special(true);
    return absl::OkStatus();
  }
  const auto say = [&](const char* role, const std::string& content) {
    v1::ChatMessage& message = *prompt.mutable_chat()->add_messages();
    message.set_role(role);
    message.set_content(content);
  };
  if (!args.system.empty()) say("system", args.system);
  say("user", text);
  return absl::OkStatus();
}

std::string AsJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : "{}";
}

absl::Status Generate(Client& client, const Arguments& args, const CallOptions& call) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(FillPrompt(args, *request.mutable_prompt()));
  request.set_session_id(args.session);
  if (!args.prefix.empty()) request.mutable_prefix()->set_text(args.prefix);
  if (args.share_system) request.mutable_prefix()->set_system_message(true);
  request.mutable_sampling()->set_temperature(args.temperature);
  request.mutable_sampling()->set_top_k(args.top_k);
  request.mutable_sampling()->set_top_p(args.top_p);
  request.mutable_sampling()->set_min_p(args.min_p);
  request.mutable_sampling()->set_seed(args.seed);
  request.mutable_stopping()->set_max_new_tokens(args.max_new_tokens);
  request.mutable_stopping()->set_ignore_eos(args.ignore_eos);
  for (const std::string& stop : args.stop) request.mutable_stopping()->add_stop_strings(stop);
  request.mutable_response()->set_cache_report(true);
  if (args.json) {
    ASSIGN_OR_RETURN(const v1::GenerateResponse response, client.Generate(request, call));
    std::printf("%s\n", AsJson(response).c_str());
    return absl::OkStatus();
  }
  v1::Finish finish;
  RETURN_IF_ERROR(client.GenerateStream(
      request,
      [&](const v1::GenerateEvent& event) {
        if (event.has_delta()) {
          std::fwrite(event.delta().text().data(), 1, event.delta().text().size(), stdout);
          std::fflush(stdout);
        }
        if (event.has_finish()) finish = event.finish();
        return true;
      },
      call));
  const auto seconds = [](const google::protobuf::Duration& d) {
    return static_cast<double>(d.seconds()) + d.nanos() * 1e-9;
  };
  const double first = seconds(finish.timings().first_token());
  const double rest = seconds(finish.timings().total()) - first;
  std::printf("\n");
  std::fprintf(stderr,
               "\n%u prompt tokens (%u of them cached), %u new tokens, first after %.3f s, then "
               "%.1f tok/s\n",
               finish.usage().prompt_tokens(), finish.usage().cached_prompt_tokens(),
               finish.usage().new_tokens(), first,
               finish.usage().new_tokens() > 1 ? (finish.usage().new_tokens() - 1) / rest : 0.0);
  return absl::OkStatus();
}

absl::Status Score(Client& client, const Arguments& args, const CallOptions& call) {
  v1::ScoreRequest request;
  RETURN_IF_ERROR(FillPrompt(args, *request.mutable_prompt()));
  ASSIGN_OR_RETURN(const v1::ScoreResponse response, client.Score(request, call));
  if (args.json) {
    std::printf("%s\n", AsJson(response).c_str());
    return absl::OkStatus();
  }
  double sum = 0;
  for (float logprob : response.logprobs()) sum -= logprob;
  std::printf("%d tokens scored, mean NLL %.5f\n", response.logprobs_size(),
              response.logprobs_size() == 0 ? 0 : sum / response.logprobs_size());
  return absl::OkStatus();
}

absl::Status Embed(Client& client, const Arguments& args, const CallOptions& call) {
  v1::EmbedRequest request;
  RETURN_IF_ERROR(FillPrompt(args, *request.mutable_prompt()));
  if (args.layer >= 0) request.set_layer(args.layer);
  request.set_pooling(args.pooling == "mean" ? v1::POOLING_MEAN : v1::POOLING_LAST);
  ASSIGN_OR_RETURN(const v1::EmbedResponse response, client.Embed(request, call));
  if (args.json) {
    std::printf("%s\n", AsJson(response).c_str());
    return absl::OkStatus();
  }
  for (float value : response.values()) std::printf("%.9g\n", value);
  return absl::OkStatus();
}

absl::Status ShowPlacement(Client& client, const Arguments& args, const CallOptions& call) {
  ASSIGN_OR_RETURN(const v1::GetPlacementResponse placement, client.GetPlacement(call));
  if (args.json) {
    std::printf("%s\n", AsJson(placement).c_str());
    return absl::OkStatus();
  }
  std::printf(
      "rank  host             device   layers                weights     kv          "
      "workspace\n");
  for (const v1::Stage& stage : placement.stages()) {
    const std::string layers =
        absl::StrCat(stage.has_embedding() ? "embedding+" : "", stage.first_layer(), "-",
                     stage.first_layer() + stage.layers() - 1, stage.has_head() ? "+head" : "");
    std::printf("%-5u %-16s %-8s %-21s %-11s %-11s %s\n", stage.rank(), stage.host().c_str(),
                stage.device().c_str(), layers.c_str(),
                HumanBytes(static_cast<double>(stage.weight_bytes())).c_str(),
                HumanBytes(static_cast<double>(stage.kv_bytes())).c_str(),
                HumanBytes(static_cast<double>(stage.workspace_bytes())).c_str());
  }
  return absl::OkStatus();
}

absl::Status ShowStats(Client& client, const CallOptions& call) {
  ASSIGN_OR_RETURN(const v1::GetServerInfoResponse server, client.GetServerInfo(call));
  ASSIGN_OR_RETURN(const v1::GetModelInfoResponse model, client.GetModelInfo(call));
  ASSIGN_OR_RETURN(const v1::GetLoadResponse load, client.GetLoad(call));
  ASSIGN_OR_RETURN(const v1::GetCacheStatsResponse cache, client.GetCacheStats(call));
  std::printf("{\"server\":%s,\"model\":%s,\"load\":%s,\"cache\":%s}\n", AsJson(server).c_str(),
              AsJson(model).c_str(), AsJson(load).c_str(), AsJson(cache).c_str());
  return absl::OkStatus();
}

absl::Status RunClient(const Arguments& args) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                   Client::Connect(args.server, args.connection));
  CallOptions call;
  if (args.timeout_seconds > 0) {
    call.deadline = absl::Now() + absl::Seconds(args.timeout_seconds);
  }
  if (args.what == "health") {
    RETURN_IF_ERROR(client->WaitUntilReady(absl::Now() + absl::Seconds(args.wait_seconds)));
    std::printf("ready\n");
    return absl::OkStatus();
  }
  if (args.what == "generate") return Generate(*client, args, call);
  if (args.what == "score") return Score(*client, args, call);
  if (args.what == "embed") return Embed(*client, args, call);
  if (args.what == "placement") return ShowPlacement(*client, args, call);
  if (args.what == "stats") return ShowStats(*client, call);
  if (args.what == "sessions") return RunSessions(*client, args.sessions, call);
  ASSIGN_OR_RETURN(const v1::DrainResponse drained, client->Drain(call));
  std::printf("draining: %u requests run, %u wait\n", drained.running(), drained.waiting());
  return absl::OkStatus();
}

}  // namespace

void AddClient(CLI::App& app, LaunchOptions& /*options*/, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(app, "client", "gRPC client of a running server", chosen,
                             [args] { return RunClient(*args); });
  AddWord(sub, "what", args->what,
          "generate, score, embed, sessions, health, stats, placement or drain")
      .OneOf({"generate", "score", "embed", "sessions", "health", "stats", "placement", "drain"})
      .Required();
  AddOption(sub, "--server", args->server, "host:port").ShowDefault();
  AddOption(sub, "--server-ca", args->connection.server_ca_file,
            "PEM file of the authority of the server's certificate; without it, no TLS");
  AddOption(sub, "--certificate", args->connection.certificate_file, "this client's own, PEM");
  AddOption(sub, "--key", args->connection.key_file, "its key, PEM");
  AddOption(sub, "--token", args->connection.token, "bearer token; needs TLS");
  AddOption(sub, "--timeout", args->timeout_seconds, "seconds for the call; 0: none").NonNegative();
  AddOption(sub, "--wait", args->wait_seconds, "health: seconds to wait for a ready server")
      .NonNegative()
      .ShowDefault();
  AddOption(sub, "--prompt", args->prompt, "the text to continue, to score or to embed");
  AddOption(sub, "--prompt-file", args->prompt_file, "the same from a file");
  AddOption(sub, "--token-ids", args->token_ids, "the same as token ids, separated by commas")
      .SeparatedByCommas();
  AddFlag(sub, "--chat", args->chat, "the prompt is a user's message");
  AddOption(sub, "--system", args->system, "with --chat: the system message");
  AddFlag(sub, "--special", args->special, "special tokens written in the prompt are parsed");
  AddOption(sub, "--max-new-tokens", args->max_new_tokens, "at most so many tokens").ShowDefault();
  AddOption(sub, "--temperature", args->temperature, "0: the likeliest token").ShowDefault();
  AddOption(sub, "--top-k", args->top_k, "only the k likeliest tokens; 0: all");
  AddOption(sub, "--top-p", args->top_p, "only the likeliest that reach this probability");
  AddOption(sub, "--min-p", args->min_p, "only those at least this likely, relatively");
  AddOption(sub, "--seed", args->seed, "the same seed gives the same tokens");
  AddOption(sub, "--stop", args->stop, "a string that ends the answer; may be repeated");
  AddFlag(sub, "--ignore-eos", args->ignore_eos, "go on after end-of-text");
  AddOption(sub, "--layer", args->layer,
            "embed: the hidden states at the start of this layer; default: after the last norm")
      .Within(0, 1 << 20);
  AddOption(sub, "--pooling", args->pooling, "embed: the last token's state, or the mean of all")
      .OneOf({"last", "mean"})
      .ShowDefault();
  AddFlag(sub, "--json", args->json, "print JSON");
  AddOption(sub, "--session", args->session, "generate: the session that this goes on with");
  AddOption(sub, "--prefix", args->prefix,
            "generate: text before the prompt whose cache state the server keeps for others");
  AddFlag(sub, "--share-system", args->share_system,
          "generate: the same for the message that --system gives");
  AddSessionOptions(sub, args->sessions);
}

}  // namespace keyline
