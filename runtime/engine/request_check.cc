#include "runtime/engine/request_check.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/chunk_plan.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/text/end_marker.h"

namespace keyline {
namespace {

absl::Status Bad(const std::string& field, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

absl::Status CheckSampling(const SamplingParams& s) {
  if (!std::isfinite(s.temperature) || s.temperature < 0 || s.temperature > 100) {
    return Bad("temperature",
               absl::StrCat("must be within [0, 100] (0 = greedy), got ", s.temperature));
  }
  if (s.top_k < 0) return Bad("top_k", absl::StrCat("must be >= 0 (0 = all), got ", s.top_k));
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    return Bad("top_p", absl::StrCat("must be within (0, 1], got ", s.top_p));
  }
  if (!(s.min_p >= 0 && s.min_p <= 1)) {
    return Bad("min_p", absl::StrCat("must be within [0, 1], got ", s.min_p));
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const Request& request, const ModelConfig& model, bool has_tokenizer) {
  const StopConditions& stop = request.stop;
  if (stop.max_new_tokens < 1) {
    return Bad("max_new_tokens", absl::StrCat("must be >= 1, got ", stop.max_new_tokens));
  }
  if (stop.min_new_tokens < 0 || stop.min_new_tokens > stop.max_new_tokens) {
    return Bad("min_new_tokens", absl::StrCat("must be within [0, max_new_tokens = ",
                                              stop.max_new_tokens, "], got ", stop.min_new_tokens));
  }
  for (int32_t id : stop.stop_token_ids) {
    if (id < 0 || id >= model.vocab_size) {
      return Bad("stop_token_ids",
                 absl::StrCat("token id ", id, " is not within [0, ", model.vocab_size, ")"));
    }
  }
  for (const std::string& text : stop.stop_strings) {
    if (text.empty()) return Bad("stop_strings", "a stop string must not be empty");
  }
  if (!stop.stop_strings.empty() && !has_tokenizer) {
    return Bad("stop_strings", "this model has no tokenizer; use stop_token_ids");
  }
  return absl::OkStatus();
}

absl::Status CheckEmbed(const EmbedOptions& embed, const ModelConfig& model) {
  if (embed.layer < 0 || embed.layer > model.layers) {
    return Bad("layer", absl::StrCat("must be within [0, ", model.layers, "] (0 = the embedding, ",
                                     model.layers, " = after the last norm), got ", embed.layer));
  }
  return absl::OkStatus();
}

int DecodeTail(const Request& request) {
  return request.score.enabled ? request.score.decode_tail : 0;
}

// Whether the policy can protect at all is ValidateLane's to say.
absl::Status ResolveProtection(const std::vector<int32_t>& prompt, const Tokenizer* tokenizer,
                               LanePolicy& policy) {
  const auto eviction = MakePolicy(policy.policy);
  if (policy.protect_until.empty() || !eviction.ok() || ((*eviction)->fields() & kProtect) == 0) {
    return absl::OkStatus();
  }
  if (policy.protect_begin != 0 || policy.protect_end != 0) {
    return Bad("protect_until", "excludes a protected range of tokens; give one of the two");
  }
  if (tokenizer == nullptr) {
    return Bad("protect_until", "this model has no tokenizer; give a range of tokens");
  }
  const absl::StatusOr<int> end = TokensToEndMarker(*tokenizer, prompt, policy.protect_until);
  if (!end.ok()) return Bad("protect_until", std::string(end.status().message()));
  policy.protect_end = *end;
  policy.protect_until.clear();
  return absl::OkStatus();
}

}  // namespace

absl::Status CompleteRequest(Request& request, const PipelineSpec& spec,
                             const Tokenizer* tokenizer) {
  const LanePolicy& server = spec.cache.policy;
  if (!request.cache.has_value()) request.cache = server;
  LanePolicy& policy = *request.cache;
  RETURN_IF_ERROR(ResolveProtection(request.prompt, tokenizer, policy));
  if (!policy.chunk_size.has_value()) {
    policy.chunk_size =
        DefaultChunkSize(policy, spec.cache_lengths, server.chunk_size.value_or(kDefaultChunkSize));
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const Request& request, const PipelineSpec& spec,
                          const ModelConfig& model, bool has_tokenizer) {
  if (request.prompt.empty()) return Bad("prompt", "must have at least one token");
  const size_t tokens = request.first_position + request.prompt.size();
  if (tokens > static_cast<size_t>(spec.max_positions)) {
    return Bad("prompt",
               absl::StrCat(tokens, " tokens",
                            request.first_position > 0 ? " with the session's so far" : "",
                            "; this model has ", spec.max_positions, " positions"));
  }
  const int prompt = static_cast<int>(tokens);
  if (request.prefix_tokens < 0 || (request.prefix_tokens > 0 && request.prefix_tokens >= prompt)) {
    return Bad("prefix", absl::StrCat("got ", request.prefix_tokens, " tokens, must be less than ",
                                      "the prompt's ", prompt));
  }
  if (request.prefix_tokens > 0 && request.reads_only()) {
    return Bad("prefix", "not for a request that reads every token: score or embed without it");
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= model.vocab_size) {
      return Bad("prompt", absl::StrCat("token id ", request.prompt[i], " at index ", i,
                                        " is not within [0, ", model.vocab_size, ")"));
    }
  }
  if (request.score.enabled) {
    if (request.score.decode_tail < 0 || request.score.decode_tail >= prompt) {
      return Bad("decode_tail",
                 absl::StrCat("must be within [0, ", prompt - 1, "] for a prompt of ", prompt,
                              " tokens, got ", request.score.decode_tail));
    }
  } else if (request.embed.enabled) {
    RETURN_IF_ERROR(CheckEmbed(request.embed, model));
  } else {
    RETURN_IF_ERROR(CheckStops(request, model, has_tokenizer));
    RETURN_IF_ERROR(CheckSampling(request.sampling));
    const int top = request.response.top_logprobs;
    if (top < 0 || top > std::min(kMaxTopLogProbs, model.vocab_size)) {
      return Bad("top_logprobs",
                 absl::StrCat("must be within [0, ", std::min(kMaxTopLogProbs, model.vocab_size),
                              "], got ", top));
    }
    if (request.response.text && !has_tokenizer) {
      return Bad("text", "this model has no tokenizer; ask for token ids");
    }
  }
  const int new_tokens = request.reads_only() ? 0 : request.stop.max_new_tokens;
  return ValidateLane(spec.cache, spec.cache_lengths, *request.cache, prompt, new_tokens,
                      spec.max_pass_tokens);
}

std::vector<int> ChunksOf(const Request& request, const PipelineSpec& spec) {
  const LanePolicy& policy = *request.cache;
  std::vector<int> lengths;
  for (size_t l = 0; l < spec.cache_lengths.size(); ++l) {
    lengths.push_back(policy.length_of(static_cast<int>(l)));
  }
  // A policy that evicts nothing may be cut at will; its chunks must fit beside what else runs.
  const bool dense = policy.policy == "dense";
  const int chunk_size =
      dense ? std::min(ChunkSize(policy),
                       std::max(spec.max_pass_tokens - spec.cache.lanes - kChunkOvershoot, 1))
            : ChunkSize(policy);
  const int tail = DecodeTail(request);
  const int done = request.first_position;
  std::vector<int> chunks =
      PlanChunks(lengths, done + static_cast<int>(request.prompt.size()) - tail, chunk_size, done,
                 request.prefix_tokens);
  chunks.insert(chunks.end(), tail, 1);
  return chunks;
}

std::vector<LayerCacheStats> EmptyCacheStats(const PipelineSpec& spec, const DecoderModel& model) {
  std::vector<LayerCacheStats> stats;
  for (size_t rank = 0; rank < spec.shards.size(); ++rank) {
    const ShardRange& shard = spec.shards[rank];
    for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
      const auto bytes = KvCache::BytesFor(spec.cache, CacheShape(model, spec, l));
      CHECK(bytes.ok()) << bytes.status();  // the caches exist
      stats.push_back({.layer = l,
                       .rank = static_cast<int>(rank),
                       .capacity = int64_t{spec.cache.lanes} * spec.cache_lengths[l],
                       .bytes = static_cast<int64_t>(bytes->per_lane) * spec.cache.lanes});
    }
  }
  return stats;
}

CacheReport ReportCache(const Sequence& sequence, const PipelineSpec& spec,
                        const DecoderModel& model) {
  const LanePolicy& policy = *sequence.request().cache;
  CacheReport report;
  report.policy = policy.policy;
  report.storage = spec.cache.storage;
  report.chunk_size = ChunkSize(policy);
  const absl::StatusOr<size_t> lane_bytes = LaneBytes(model, spec);
  report.lane_bytes = lane_bytes.ok() ? static_cast<int64_t>(*lane_bytes) : 0;
  const int processed = sequence.tokens_processed();
  const absl::StatusOr<std::unique_ptr<EvictionPolicy>> eviction = MakePolicy(policy.policy);
  CHECK(eviction.ok()) << eviction.status();  // admission saw to it
  for (size_t l = 0; l < spec.cache_lengths.size(); ++l) {
    const int length = policy.length_of(static_cast<int>(l));
    const absl::StatusOr<LaneRules> rules = (*eviction)->Rules(policy, length);
    CHECK(rules.ok()) << rules.status();
    const LaneReport lane = ReportLane(*rules, processed);
    report.layers.push_back({.layer = static_cast<int>(l),
                             .cache_length = lane.cache_length,
                             .slots_used = lane.slots_used,
                             .evicted = lane.evicted,
                             .protected_slots = lane.protected_slots});
  }
  return report;
}

}  // namespace keyline
