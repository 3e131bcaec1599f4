// Deployment files as defaults of the command line's flags.

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "launch/options.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/config/deployment.h"

namespace keyline {
namespace {

// The flags' own limits, for values that come from a file.
class Limits {
 public:
  explicit Limits(const std::string& path) : path_(path) {}

  template <class T>
  void Within(const char* field, T value, T least, T most) {
    if (value >= least && value <= most) return;
    status_.Update(absl::InvalidArgumentError(absl::StrCat(path_, ": ", field, " must be within [",
                                                           least, ", ", most, "], got ", value)));
  }
  void OneOf(const char* field, const std::string& value, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) != known.end()) return;
    status_.Update(absl::InvalidArgumentError(absl::StrCat(
        path_, ": ", field, ": unknown value '", value, "'; known: ", absl::StrJoin(known, ", "))));
  }
  const absl::Status& status() const { return status_; }

 private:
  const std::string& path_;
  absl::Status status_;
};

absl::Status CheckValues(const std::string& path, const LaunchOptions& o) {
  Limits limits(path);
  limits.Within("ranks", o.ranks, 0, 1024);
  limits.Within("threads", o.threads, 0, 1024);
  limits.Within("lanes", o.lanes, 0, 65536);
  limits.Within("max_pass_tokens", o.max_pass_tokens, 0, 1 << 20);
  limits.Within("pipeline_depth", o.pipeline_depth, 0, 1024);
  limits.OneOf("dtype", o.dtype, {"auto", "f32", "bf16"});
  limits.OneOf("weight_storage", o.weight_storage, WeightStorageChoices());
  limits.OneOf("offload", o.offload, {"auto", "none", "all"});
  limits.OneOf("transport", o.transport, {"auto", "host", "nccl"});
  limits.OneOf("cache.policy", o.kv.policy, CachePolicyNames());
  limits.OneOf("cache.storage", o.kv_storage, CacheStorageNames());
  for (const std::string& name : o.kv_enabled) {
    limits.OneOf("cache.enabled", name, CachePolicyNames());
  }
  for (int length : o.kv_cache_length) limits.Within("cache.cache_length", length, 1, 1 << 24);
  limits.Within("cache.chunk", o.kv.chunk_size.value_or(1), 1, 1 << 20);
  limits.Within("cache.sinks", o.kv.sinks.value_or(0), 0, 1 << 24);
  limits.Within("cache.grace", o.kv.grace, 0, 1 << 24);
  limits.Within("cache.max_chunk", o.kv.max_chunk, 0, 1 << 20);
  limits.Within("cache.keep_initial_fraction", o.kv.keep_initial_fraction, 0.0, 1.0);
  limits.Within("cache.max_protected_fraction", o.kv.max_protected_fraction, 0.0, 1.0);
  limits.Within("server.max_queued_requests", o.max_queued_requests, 0, 1 << 20);
  limits.Within("server.max_queued_tokens", o.max_queued_tokens, int64_t{1}, INT64_MAX);
  limits.Within("server.drain_seconds", o.drain_seconds, 0.0, 1e9);
  limits.Within("server.max_sessions", o.max_sessions, 0, 1 << 20);
  return limits.status();
}

void ApplyCache(const config::Cache& cache, LaunchOptions& o) {
  if (cache.has_policy()) o.kv.policy = cache.policy();
  if (cache.cache_length_size() > 0) {
    o.kv_cache_length.assign(cache.cache_length().begin(), cache.cache_length().end());
  }
  if (cache.has_chunk()) o.kv.chunk_size = cache.chunk();
  if (cache.has_storage()) o.kv_storage = cache.storage();
  if (cache.has_sinks()) o.kv.sinks = cache.sinks();
  if (cache.has_grace()) o.kv.grace = cache.grace();
  if (cache.has_keep_initial_fraction()) {
    o.kv.keep_initial_fraction = cache.keep_initial_fraction();
  }
  if (cache.has_normalize_scores()) o.kv.normalize_scores = cache.normalize_scores();
  if (cache.has_max_chunk()) o.kv.max_chunk = cache.max_chunk();
  if (cache.has_max_protected_fraction()) {
    o.kv.max_protected_fraction = cache.max_protected_fraction();
  }
  if (cache.has_protect_until()) o.kv.protect_until = cache.protect_until();
  o.kv_enabled.assign(cache.enabled().begin(), cache.enabled().end());
}

void ApplyServer(const config::Server& server, LaunchOptions& o) {
  if (server.has_address()) o.address = server.address();
  if (server.has_tls_certificate()) o.tls_certificate = server.tls_certificate();
  if (server.has_tls_key()) o.tls_key = server.tls_key();
  if (server.has_tls_client_ca()) o.tls_client_ca = server.tls_client_ca();
  if (server.has_token_file()) o.token_file = server.token_file();
  if (server.has_insecure()) o.insecure = server.insecure();
  if (server.has_max_queued_requests()) o.max_queued_requests = server.max_queued_requests();
  if (server.has_max_queued_tokens()) o.max_queued_tokens = server.max_queued_tokens();
  if (server.has_drain_seconds()) o.drain_seconds = server.drain_seconds();
  if (server.has_session_dir()) o.session_dir = server.session_dir();
  if (server.has_session_memory()) o.session_memory = server.session_memory();
  if (server.has_max_sessions()) o.max_sessions = server.max_sessions();
  if (server.has_prefix_memory()) o.prefix_memory = server.prefix_memory();
}

}  // namespace

absl::Status ApplyDeployment(const std::string& path, LaunchOptions& o) {
  ASSIGN_OR_RETURN(const config::Deployment d, LoadDeployment(path));
  if (d.has_model()) o.model = d.model();
  if (d.has_ranks()) o.ranks = d.ranks();
  if (d.device_size() > 0) o.device = absl::StrJoin(d.device(), ",");
  if (d.has_dtype()) o.dtype = d.dtype();
  if (d.has_weight_storage()) o.weight_storage = d.weight_storage();
  if (d.has_threads()) o.threads = d.threads();
  if (d.has_deterministic()) o.deterministic = d.deterministic();
  if (d.has_lanes()) o.lanes = d.lanes();
  if (d.has_max_pass_tokens()) o.max_pass_tokens = d.max_pass_tokens();
  if (d.has_pipeline_depth()) o.pipeline_depth = d.pipeline_depth();
  if (d.has_device_memory()) o.device_memory = d.device_memory();
  if (d.has_offload()) o.offload = d.offload();
  if (d.has_host_memory()) o.host_memory = d.host_memory();
  if (d.has_transport()) o.transport = d.transport();
  ApplyCache(d.cache(), o);
  ApplyServer(d.server(), o);
  return CheckValues(path, o);
}

}  // namespace keyline
