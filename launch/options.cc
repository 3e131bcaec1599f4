#include "launch/options.h"

#include <cctype>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "launch/flags.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/weights/weight_storage.h"

namespace keyline {

std::vector<std::string> WeightStorageChoices() {
  std::vector<std::string> names = WeightStorageNames();
  names.insert(names.begin(), "auto");
  return names;
}

void AddModelOptions(CLI::App& app, LaunchOptions& o) {
  AddOption(app, "--config", o.config, "deployment file (configs/*.pbtxt); flags override it");
  AddOption(app, "--model", o.model, "a Hugging Face directory, or one .gguf file");
  AddOption(app, "--ranks", o.ranks,
            "ranks as threads of this process; under mpirun the ranks are MPI's")
      .Within(1, 1024);
  AddOption(app, "--device", o.device,
            "cpu or cuda:N; several, separated by commas, are dealt to ranks in turn")
      .ShowDefault();
  AddOption(app, "--dtype", o.dtype, "number format of weights and plain caches")
      .OneOf({"auto", "f32", "bf16"})
      .ShowDefault();
  AddOption(app, "--weight-storage", o.weight_storage,
            "how matrices are kept: plain (--dtype), int8, int4, file (q8_0, q4_0, q4_1 blocks as "
            "they are); auto is file, or plain on GPUs and where --dtype is given")
      .OneOf(WeightStorageChoices())
      .ShowDefault();
  AddOption(app, "--threads", o.threads, "compute threads of each rank; default: cores / ranks")
      .Within(1, 1024);
  AddOption(app, "--lanes", o.lanes, "sequences that run at a time").Within(1, 65536);
  AddOption(app, "--max-pass-tokens", o.max_pass_tokens, "most tokens of one step")
      .Within(1, 1 << 20);
  AddOption(app, "--pipeline-depth", o.pipeline_depth,
            "most steps in flight; default: the number of ranks; at 1 a lone GPU runs one ahead")
      .Within(1, 1024);
  AddOption(app, "--device-memory", o.device_memory, "most memory of a rank, such as 6GiB");
  AddOption(app, "--offload", o.offload,
            "which layers stream through device memory: those that do not fit, none or all")
      .OneOf({"auto", "none", "all"})
      .ShowDefault();
  AddOption(app, "--host-memory", o.host_memory,
            "most host memory of a rank for layers that stream, such as 32GiB; what exceeds it is "
            "read from the model's files at every step");
  AddOption(app, "--transport", o.transport,
            "how tensors travel between ranks: auto is NCCL where each is a process with a GPU to "
            "itself, else host")
      .OneOf({"auto", "host", "nccl"})
      .ShowDefault();
  AddFlag(app, "--deterministic", o.deterministic,
          "the same tokens whatever else is in the batch: always so on the CPU; on GPUs weights "
          "are then read anew for every 32 tokens of a prompt");
}

void AddCacheOptions(CLI::App& app, LaunchOptions& o) {
  AddOption(app, "--kv-policy", o.kv.policy, "which tokens a full cache keeps")
      .OneOf(CachePolicyNames())
      .ShowDefault();
  AddOption(app, "--kv-storage", o.kv_storage, "number format of keys and values")
      .OneOf(CacheStorageNames())
      .ShowDefault();
  AddOption(app, "--kv-cache-length", o.kv_cache_length,
            "slots per KV head: one number for all layers, or one a layer, separated by commas")
      .SeparatedByCommas()
      .Within(1, 1 << 24);
  AddOption(
      app, "--kv-chunk", o.kv.chunk_size,
      "tokens of a prompt's chunks after the first; default: 512, or the largest that fits the "
      "policy and the cache length")
      .Within(1, 1 << 20);
  AddOption(app, "--kv-sinks", o.kv.sinks, "first slots that are never evicted").Within(0, 1 << 24);
  AddOption(app, "--kv-grace", o.kv.grace, "slots of the ring of most recent tokens")
      .Within(0, 1 << 24)
      .ShowDefault();
  AddOption(app, "--kv-keep-initial-fraction", o.kv.keep_initial_fraction,
            "share of the first slots that the first eviction spares")
      .Within(0.0, 1.0)
      .ShowDefault();
  AddFlag(app, "--kv-normalize-scores", o.kv.normalize_scores,
          "rank by score per token seen since the key was written");
  AddOption(app, "--kv-max-chunk", o.kv.max_chunk, "lowers --kv-chunk; 0: no limit")
      .Within(0, 1 << 20)
      .ShowDefault();
  AddOption(app, "--kv-enabled", o.kv_enabled,
            "policies that requests may ask for besides --kv-policy, separated by commas")
      .SeparatedByCommas()
      .OneOf(CachePolicyNames());
  AddOption(app, "--kv-protect", o.kv_protect, "A:B, prompt tokens that are never evicted");
  AddOption(app, "--kv-protect-until", o.kv.protect_until,
            "regular expression (RE2): prompt tokens up to its first match are never evicted");
  AddOption(app, "--kv-max-protected-fraction", o.kv.max_protected_fraction,
            "largest share of the cache that may be protected")
      .Within(0.0, 1.0)
      .ShowDefault();
}

absl::StatusOr<uint64_t> ParseBytes(const std::string& text) {
  size_t digits = 0;
  while (digits < text.size() && (std::isdigit(text[digits]) != 0 || text[digits] == '.')) {
    ++digits;
  }
  double number = 0;
  const std::string unit = text.substr(digits);
  double factor = 0;
  if (unit.empty() || unit == "B") factor = 1;
  if (unit == "KiB") factor = 1024.0;
  if (unit == "MiB") factor = 1024.0 * 1024;
  if (unit == "GiB") factor = 1024.0 * 1024 * 1024;
  if (unit == "TiB") factor = 1024.0 * 1024 * 1024 * 1024;
  if (!absl::SimpleAtod(text.substr(0, digits), &number) || factor == 0 || number * factor > 1e18) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is no amount of memory; write 6GiB, 512MiB or a number of bytes"));
  }
  return static_cast<uint64_t>(number * factor);
}

absl::StatusOr<uint64_t> FlagBytes(const char* flag, const std::string& text) {
  absl::StatusOr<uint64_t> bytes = ParseBytes(text);
  if (bytes.ok()) return bytes;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": ", std::string(bytes.status().message())));
}

}  // namespace keyline
