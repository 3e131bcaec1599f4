// Command-line flags that several subcommands share. Every flag has an environment variable
// (--kv-policy: KEYLINE_KV_POLICY); `--config FILE.pbtxt` gives defaults below both.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/config/cache_config.h"

namespace CLI {
class App;
}

namespace keyline {

struct LaunchOptions {
  std::string config;  // deployment file, or ""
  std::string model;   // directory or .gguf file
  int ranks = 0;       // 0: MPI's world size under mpirun, else 1
  std::string device = "cpu";
  std::string dtype = "auto";
  std::string weight_storage = "auto";
  int threads = 0;            // per rank; 0: the host's cores shared among its ranks
  int lanes = 0;              // 0: the command's default
  int max_pass_tokens = 0;    // 0: chosen
  int pipeline_depth = 0;     // 0: the number of ranks
  std::string device_memory;  // "6GiB"; "" = all there is
  std::string offload = "auto";
  std::string host_memory;  // of layers that stream; "": what the host has free
  std::string transport = "auto";
  bool deterministic = false;

  std::string kv_storage = "plain";
  std::vector<int> kv_cache_length;     // empty: the command's default
  LanePolicy kv;                        // everything else about the policy
  std::string kv_protect;               // "A:B"
  std::vector<std::string> kv_enabled;  // policies that requests may ask for besides

  // serve
  std::string address = "127.0.0.1:50051";
  bool insecure = false;
  std::string tls_certificate;
  std::string tls_key;
  std::string tls_client_ca;
  std::string token_file;
  int max_queued_requests = 256;
  int64_t max_queued_tokens = 1 << 20;
  double drain_seconds = 30;
  std::string session_dir;  // "": sessions are not saved
  std::string session_memory = "1GiB";
  int max_sessions = 256;
  std::string prefix_memory = "512MiB";
};

// What --weight-storage takes.
std::vector<std::string> WeightStorageChoices();

// --model, --ranks, --device, ...
void AddModelOptions(CLI::App& app, LaunchOptions& options);
// --kv-...
void AddCacheOptions(CLI::App& app, LaunchOptions& options);

// Reads `options.config` into the fields that it sets. Call before the flags are parsed.
absl::Status ApplyDeployment(const std::string& path, LaunchOptions& options);

// "6GiB", "512MiB", "1000000": bytes. INVALID_ARGUMENT for anything else.
absl::StatusOr<uint64_t> ParseBytes(const std::string& text);
// The same of a flag, which the error names.
absl::StatusOr<uint64_t> FlagBytes(const char* flag, const std::string& text);

}  // namespace keyline
