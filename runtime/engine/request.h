// What a request asks of the engine and what it hears back. No gRPC here: rpc/ and launch/
// translate.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/ops/batch.h"
#include "runtime/config/cache_config.h"

namespace keyline {

using RequestId = uint64_t;  // unique within one engine, never reused

struct StopConditions {
  int max_new_tokens = 0;
  int min_new_tokens = 0;               // end-of-text and stops do not count before
  std::vector<int32_t> stop_token_ids;  // besides the model's end-of-text ids
  std::vector<std::string> stop_strings;
  bool ignore_eos = false;
  bool include_stop = false;  // the stop string or token is part of the answer
};

// What comes back besides token ids.
struct ResponseOptions {
  bool text = true;
  bool logprobs = false;
  int top_logprobs = 0;  // <= kMaxTopLogProbs
  bool cache_report = false;
};

// What a request wants to know of the tokens it gave (teacher forcing).
struct ScoreOptions {
  bool enabled = false;
  bool logits = false;  // the sink hears every row of logits (TokenSink::OnLogits)
  bool trace = false;   // kept positions after every chunk, per layer and KV head
  int decode_tail = 0;  // the last tokens are fed one by one
};

enum class Pooling { kLast, kMean };

// What a request wants to know of the hidden states of the tokens it gave.
struct EmbedOptions {
  bool enabled = false;
  // The states at the start of this layer; the model's number of layers: after the last norm.
  int layer = 0;
  Pooling pooling = Pooling::kLast;
};

// A request that goes on with a session (runtime/engine/session_store.h).
struct SessionTurn {
  std::string id;
  uint64_t turn = 0;  // SessionInfo::turns as its prompt was made for
};

struct Request {
  std::string label;            // the client's request id, for logs
  std::vector<int32_t> prompt;  // token ids, at least one; what is new, where a session goes on
  std::optional<SessionTurn> session;
  // The first so many tokens of the prompt, fewer than all, are a prefix that other requests share:
  // a chunk boundary, behind which the lane's state is kept for them. 0: none. Not with `session`.
  int prefix_tokens = 0;
  // The engine's own: position of prompt[0], where a session goes on; and what the prefix's
  // snapshot is found by.
  int first_position = 0;
  std::string prefix_key;
  // Random numbers are keyed by (seed, sequence, position): the same request draws the same numbers
  // wherever and beside whatever it runs. `sequence` tells several answers of one request apart.
  SamplingParams sampling;
  StopConditions stop;
  std::optional<LanePolicy> cache;  // unset: the server's default
  ResponseOptions response;
  ScoreOptions score;
  EmbedOptions embed;  // not with `score`
  absl::Time deadline = absl::InfiniteFuture();

  // Nothing is generated: the request is about the tokens it gave.
  bool reads_only() const { return score.enabled || embed.enabled; }
};

struct TopLogProb {
  int32_t token = 0;
  float logprob = 0;
};

// New tokens of a request, in order; indexes never repeat or skip.
struct TokenDelta {
  int first_index = 0;  // of tokens[0] among the request's new tokens
  std::vector<int32_t> tokens;
  std::string text;             // whole UTF-8; may lag behind the tokens
  std::vector<float> logprobs;  // one a token, if asked for
  std::vector<std::vector<TopLogProb>> top_logprobs;
};

enum class FinishReason { kStop, kLength };

struct Usage {
  int prompt_tokens = 0;         // of the whole conversation, where a session goes on
  int cached_prompt_tokens = 0;  // of those, not computed: a session or a snapshot had them
  int new_tokens = 0;
};

struct Timings {
  absl::Duration queued;       // Submit to the first step that carries the request
  absl::Duration first_token;  // Submit to the first token
  absl::Duration total;
};

// Of one layer, at the end.
struct LayerCacheReport {
  int layer = 0;
  int cache_length = 0;
  int slots_used = 0;
  int64_t evicted = 0;  // tokens dropped, per KV head
  int protected_slots = 0;
};

struct CacheReport {
  std::string policy;
  std::string storage;
  int chunk_size = 0;      // tokens of the prompt's chunks after the first
  int64_t lane_bytes = 0;  // over all layers
  std::vector<LayerCacheReport> layers;
};

// Kept positions after one chunk: kept[layer][kv head], ascending.
struct ChunkTrace {
  int start = 0;
  int tokens = 0;
  std::vector<std::vector<std::vector<int32_t>>> kept;
};

struct ScoreResult {
  std::vector<float> logprobs;  // of each given token but the first
  std::vector<ChunkTrace> trace;
};

struct Finish {
  FinishReason reason = FinishReason::kLength;
  std::string stop;  // the stop string that matched, if any
  Usage usage;
  Timings timings;
  std::optional<CacheReport> cache;
  std::optional<ScoreResult> score;
  std::vector<float> hidden;  // of an embed request, [hidden size]
};

}  // namespace keyline
