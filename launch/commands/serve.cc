// keyline serve: every rank of a server; gRPC on rank 0.

#include <glog/logging.h>
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/commands/commands.h"
#include "launch/placement_report.h"
#include "launch/ranks.h"
#include "launch/wiring.h"
#include "rpc/server/server.h"
#include "runtime/engine/engine.h"
#include "runtime/model/fingerprint.h"
#include "runtime/transport/communicator.h"

namespace keyline {
namespace {

sigset_t DrainSignals() {
  sigset_t set;
  sigemptyset(&set);
  // mpirun sends SIGTERM to ranks that it is about to kill, and forwards SIGUSR1 to all.
  if (!StartedByMpi()) sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGUSR1);
  return set;
}

// Calls `drain` at the first of the signals, which all threads must have blocked.
class DrainOnSignal {
 public:
  explicit DrainOnSignal(std::function<void()> drain)
      : thread_([this, drain = std::move(drain)] {
          const sigset_t set = DrainSignals();
          int signal = 0;
          sigwait(&set, &signal);
          if (!over_) drain();
        }) {}
  ~DrainOnSignal() {
    over_ = true;
    pthread_kill(thread_.native_handle(), SIGUSR1);  // wakes it if no signal ever came
    thread_.join();
  }

 private:
  std::atomic<bool> over_{false};
  std::thread thread_;
};

std::vector<PlacementRow> RowsOf(const std::vector<pipeline::RankReady>& ranks,
                                 const PipelineSpec& spec) {
  std::vector<PlacementRow> rows;
  for (const pipeline::RankReady& rank : ranks) {
    rows.push_back({.rank = rank.rank(),
                    .host = rank.host(),
                    .device = rank.device(),
                    .shard = spec.shards[rank.rank()],
                    .bytes = {.weights = rank.weight_bytes(),
                              .kv = rank.kv_bytes(),
                              .workspace = rank.workspace_bytes()},
                    .free_bytes = rank.free_bytes()});
  }
  return rows;
}

absl::StatusOr<ServerFacts> FactsOf(const OpenedModel& opened, const PipelineSpec& spec,
                                    const std::vector<PlacementRow>& rows) {
  ServerFacts facts;
  facts.version = KEYLINE_VERSION;
  facts.model = opened.model->config();
  facts.dtype = std::string(Name(spec.dtype));
  facts.cache = spec.cache;
  ASSIGN_OR_RETURN(const size_t lane, LaneBytes(*opened.model, spec));
  facts.lane_bytes = static_cast<int64_t>(lane);
  for (const PlacementRow& row : rows) {
    facts.weight_bytes += static_cast<int64_t>(row.bytes.weights);
    facts.stages.push_back({.rank = row.rank,
                            .host = row.host,
                            .device = row.device,
                            .first_layer = row.shard.first_layer,
                            .layers = row.shard.layers,
                            .has_embedding = row.shard.embedding,
                            .has_head = row.shard.head,
                            .weight_bytes = static_cast<int64_t>(row.bytes.weights),
                            .kv_bytes = static_cast<int64_t>(row.bytes.kv),
                            .workspace_bytes = static_cast<int64_t>(row.bytes.workspace)});
  }
  return facts;
}

absl::StatusOr<EngineOptions> EngineOptionsOf(const LaunchOptions& options,
                                              const OpenedModel& opened, const PipelineSpec& spec) {
  EngineOptions engine;
  engine.max_queued_requests = options.max_queued_requests;
  engine.max_queued_tokens = options.max_queued_tokens;
  engine.drain_limit = absl::Seconds(options.drain_seconds);
  RETURN_IF_ERROR(SessionDir::Check(options.session_dir));
  engine.sessions.dir = options.session_dir;
  engine.sessions.max_sessions = options.max_sessions;
  ASSIGN_OR_RETURN(engine.sessions.max_bytes,
                   FlagBytes("--session-memory", options.session_memory));
  ASSIGN_OR_RETURN(engine.max_prefix_bytes, FlagBytes("--prefix-memory", options.prefix_memory));
  ASSIGN_OR_RETURN(engine.sessions.model, ModelFingerprint(*opened.model, opened.weights(),
                                                           spec.dtype, spec.weights.storage()));
  return engine;
}

absl::Status Lead(const LaunchOptions& options, const EngineOptions& engine_options,
                  const OpenedModel& opened, Coordinator& coordinator,
                  const std::vector<pipeline::RankReady>& ranks) {
  const PipelineSpec& spec = coordinator.spec();
  const std::vector<PlacementRow> rows = RowsOf(ranks, spec);
  ASSIGN_OR_RETURN(const std::string report, PlacementReport(opened, spec, rows));
  ASSIGN_OR_RETURN(const ServerFacts facts, FactsOf(opened, spec, rows));

  Engine engine(coordinator, opened.tokenizer.get(), engine_options);
  ServeOptions serve_options;
  serve_options.address = options.address;
  serve_options.insecure = options.insecure;
  serve_options.certificate_file = options.tls_certificate;
  serve_options.key_file = options.tls_key;
  serve_options.client_ca_file = options.tls_client_ca;
  serve_options.token_file = options.token_file;
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(serve_options, facts, opened.tokenizer.get(), engine);
  if (!server.ok()) {
    coordinator.Shutdown();
    return server.status();
  }
  std::fputs(report.c_str(), stdout);
  std::printf("ready      grpc %s (health, reflection)\n", (*server)->address().c_str());
  std::fflush(stdout);

  absl::Status status;
  {
    const DrainOnSignal drain([&] {
      LOG(INFO) << "draining: no new requests; running ones have "
                << absl::FormatDuration(engine_options.drain_limit);
      (*server)->BeginDrain();
      engine.Drain();
    });
    status = engine.Run();
  }
  // All streams have been told their end; give their last messages a moment to leave.
  (*server)->Shutdown(absl::Seconds(2));
  return status;
}

absl::Status Serve(const LaunchOptions& options) {
  // Before any thread exists, so that all of them inherit it: only rank 0's drain thread takes
  // these signals. The other ranks end when rank 0 tells them to.
  const sigset_t set = DrainSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(options.model, NeedTokenizer::kNo));
  ASSIGN_OR_RETURN(const PipelineSpec spec, MakeSpec(options, opened, {.lanes = kServeLanes}));
  // Before weights are loaded: a mistyped folder should not take minutes to be told.
  ASSIGN_OR_RETURN(const EngineOptions engine_options, EngineOptionsOf(options, opened, spec));
  return RunPipeline(options, opened, spec, /*show_progress=*/true,
                     [&](Coordinator& coordinator, const std::vector<pipeline::RankReady>& ranks) {
                       return Lead(options, engine_options, opened, coordinator, ranks);
                     });
}

}  // namespace

void AddServe(CLI::App& app, LaunchOptions& options, Command& chosen) {
  CLI::App& sub = AddCommand(app, "serve", "every rank of a server; gRPC on rank 0", chosen,
                             [&options] { return Serve(options); });
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  AddOption(sub, "--address", options.address, "host:port that rank 0 listens on; port 0: any")
      .ShowDefault();
  AddFlag(sub, "--insecure", options.insecure, "allow an address other than loopback without TLS");
  AddOption(sub, "--tls-certificate", options.tls_certificate, "PEM file; with --tls-key");
  AddOption(sub, "--tls-key", options.tls_key, "PEM file of the certificate's key");
  AddOption(sub, "--tls-client-ca", options.tls_client_ca,
            "PEM file: clients must show a certificate of this authority");
  AddOption(sub, "--token-file", options.token_file, "bearer tokens, one a line; needs TLS");
  AddOption(sub, "--max-queued-requests", options.max_queued_requests,
            "requests that may wait for a lane")
      .Within(0, 1 << 20)
      .ShowDefault();
  AddOption(sub, "--max-queued-tokens", options.max_queued_tokens,
            "tokens (prompt and new) of all that wait")
      .Positive()
      .ShowDefault();
  AddOption(sub, "--drain-seconds", options.drain_seconds,
            "how long running requests may go on after SIGTERM")
      .NonNegative()
      .ShowDefault();
  AddOption(sub, "--session-dir", options.session_dir,
            "folder where sessions are saved; without it, they are not");
  AddOption(sub, "--session-memory", options.session_memory,
            "most host memory of sessions that have given their lane up")
      .ShowDefault();
  AddOption(sub, "--max-sessions", options.max_sessions,
            "sessions at a time, and saved ones; 0: none")
      .Within(0, 1 << 20)
      .ShowDefault();
  AddOption(sub, "--prefix-memory", options.prefix_memory,
            "most host memory of snapshots of prompt prefixes; 0: none")
      .ShowDefault();
}

}  // namespace keyline
