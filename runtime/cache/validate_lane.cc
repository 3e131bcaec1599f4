// Admission: whether a request's policy makes sense and fits the caches it would run in.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/chunk_plan.h"
#include "runtime/cache/kv_cache.h"

namespace keyline {
namespace {

std::vector<std::string> EnabledNames(const CacheConfig& config) {
  std::vector<std::string> names = config.enabled;
  if (std::find(names.begin(), names.end(), config.policy.policy) == names.end()) {
    names.insert(names.begin(), config.policy.policy);
  }
  return names;
}

// An enabled policy that forgets, or "".
std::string EvictingPolicy(const CacheConfig& config) {
  for (const std::string& name : EnabledNames(config)) {
    const auto policy = MakePolicy(name);
    if (policy.ok() && (*policy)->needs().evicts) return name;
  }
  return "";
}

std::string InLayer(const std::vector<int>& lengths, size_t layer) {
  return lengths.size() > 1 ? absl::StrCat(" (layer ", layer, ")") : "";
}

absl::Status CheckLengths(const std::vector<int>& lengths, const LanePolicy& policy) {
  const std::vector<int>& asked = policy.cache_length;
  if (asked.size() > 1 && asked.size() != lengths.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache_length has ", asked.size(), " numbers and the model ", lengths.size(),
                     " layers; give one number for all layers or one per layer"));
  }
  for (size_t l = 0; l < asked.size(); ++l) {
    const int limit =
        asked.size() == 1 ? *std::min_element(lengths.begin(), lengths.end()) : lengths[l];
    if (asked[l] < 1 || asked[l] > limit) {
      return absl::InvalidArgumentError(absl::StrCat("cache_length ", asked[l], InLayer(asked, l),
                                                     " is not in [1, ", limit,
                                                     "], what a lane of this server has"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDense(const CacheConfig& config, const std::vector<int>& lengths,
                        const LanePolicy& policy, int prompt_tokens, int max_new_tokens) {
  const size_t layer = std::min_element(lengths.begin(), lengths.end()) - lengths.begin();
  const int length = lengths[layer];
  // The last token that is sampled is never fed, so it needs no slot.
  const int64_t needed = int64_t{prompt_tokens} + std::max(max_new_tokens, 1) - 1;
  if (needed <= length) return absl::OkStatus();
  const std::string evicting = EvictingPolicy(config);
  const int most_new = length - prompt_tokens + 1;
  return absl::InvalidArgumentError(absl::StrCat(
      "policy '", policy.policy, "' keeps every token: prompt ", prompt_tokens,
      " + max_new_tokens ", max_new_tokens, " need ", needed, " slots and cache_length is ", length,
      InLayer(lengths, layer), "; what would fit: ",
      most_new >= 1 ? absl::StrCat("max_new_tokens <= ", most_new, ", or ") : "",
      evicting.empty() ? absl::StrCat("a server with a policy that evicts (enabled here: ",
                                      absl::StrJoin(EnabledNames(config), ", "), ")")
                       : absl::StrCat("policy '", evicting, "' at any length")));
}

absl::Status CheckChunkSize(const LanePolicy& policy, int largest, const std::string& what) {
  const int chunk = ChunkSize(policy);
  if (chunk + kChunkOvershoot <= largest) return absl::OkStatus();
  const int fits = largest - kChunkOvershoot;
  return absl::InvalidArgumentError(
      absl::StrCat("chunk_size ", chunk, " may give chunks of ", chunk + kChunkOvershoot,
                   " tokens and ", what, " allows ", largest, "; ",
                   fits >= 1 ? absl::StrCat("the largest chunk_size that fits is ", fits)
                             : "no chunk_size fits"));
}

}  // namespace

absl::Status ValidateLane(const CacheConfig& config, const std::vector<int>& lengths,
                          const LanePolicy& policy, int prompt_tokens, int max_new_tokens,
                          int max_pass_tokens) {
  const std::vector<std::string> enabled = EnabledNames(config);
  if (std::find(enabled.begin(), enabled.end(), policy.policy) == enabled.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache policy '", policy.policy,
                     "' is not enabled; enabled: ", absl::StrJoin(enabled, ", ")));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<EvictionPolicy> rules_of, MakePolicy(policy.policy));
  if (policy.chunk_size.value_or(1) < 1) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_size ", *policy.chunk_size, " < 1"));
  }
  if (policy.max_chunk > 0 && policy.max_chunk <= kChunkOvershoot) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_chunk ", policy.max_chunk, " is not 0 (none) or at least ", kChunkOvershoot + 1,
        ": a chunk may exceed the chunk size by ", kChunkOvershoot));
  }
  RETURN_IF_ERROR(CheckLengths(lengths, policy));
  std::vector<int> asked(lengths.size());
  for (size_t l = 0; l < lengths.size(); ++l) {
    asked[l] = policy.cache_length.empty() ? lengths[l] : policy.length_of(static_cast<int>(l));
    absl::StatusOr<LaneRules> rules = rules_of->Rules(policy, asked[l]);
    if (!rules.ok()) {
      return absl::Status(rules.status().code(),
                          absl::StrCat(std::string(rules.status().message()), InLayer(asked, l)));
    }
    // The chunks of a dense sequence decide nothing, so their size is free.
    if (!rules_of->needs().evicts) continue;
    RETURN_IF_ERROR(CheckChunkSize(
        policy, rules_of->MaxChunk(*rules),
        absl::StrCat(
            "policy '", policy.policy, "' with cache_length ", asked[l], ", sinks ", rules->sinks,
            ", grace ", rules->grace,
            rules->protect_end > rules->protect_begin
                ? absl::StrCat(", ", rules->protect_end - rules->protect_begin, " protected slots")
                : "",
            InLayer(asked, l))));
  }
  if (!rules_of->needs().evicts) {
    return CheckDense(config, asked, policy, prompt_tokens, max_new_tokens);
  }
  return CheckChunkSize(policy, max_pass_tokens, "a pass of this server");
}

int DefaultChunkSize(const LanePolicy& policy, const std::vector<int>& lengths, int most) {
  const auto rules_of = MakePolicy(policy.policy);
  const std::vector<int>& asked = policy.cache_length;
  if (!rules_of.ok() || !(*rules_of)->needs().evicts ||
      (asked.size() > 1 && asked.size() != lengths.size())) {
    return most;
  }
  int fits = most;
  for (size_t l = 0; l < lengths.size(); ++l) {
    const int length = asked.empty() ? lengths[l] : policy.length_of(static_cast<int>(l));
    const auto rules = (*rules_of)->Rules(policy, length);
    if (!rules.ok()) return most;
    fits = std::min(fits, (*rules_of)->MaxChunk(*rules) - kChunkOvershoot);
  }
  return fits >= 1 ? fits : most;
}

std::string LaneWarning(const LanePolicy& policy, const std::vector<int>& lengths) {
  const auto rules_of = MakePolicy(policy.policy);
  if (!rules_of.ok() || !(*rules_of)->needs().evicts) return "";
  for (size_t l = 0; l < lengths.size(); ++l) {
    const int length =
        policy.cache_length.empty() ? lengths[l] : policy.length_of(static_cast<int>(l));
    const auto rules = (*rules_of)->Rules(policy, length);
    if (!rules.ok()) return "";
    const bool first_kept =
        rules->sinks > 0 || (rules->protect_begin == 0 && rules->protect_end > 0);
    if (!first_kept && rules->grace == 0) {
      return absl::StrCat("policy '", policy.policy, "' with cache_length ", length,
                          InLayer(lengths, l),
                          " protects no slot: once the first tokens of a text are evicted, models "
                          "tend to end it; sinks 4 costs four slots");
    }
  }
  return "";
}

}  // namespace keyline
