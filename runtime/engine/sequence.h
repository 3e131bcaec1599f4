// Sequence: one request on its way through the engine: which chunks are still to be launched, what
// has been generated, what has been said to its sink. Thread: the engine's.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/engine/lane_keeper.h"
#include "runtime/engine/request.h"
#include "runtime/engine/token_sink.h"
#include "runtime/pipeline/step_plan.pb.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/stop_matcher.h"

namespace keyline {

// Where a conversation stands: what its lane has processed, and tokens that come next (the last
// sampled one has not been fed; a cancelled prompt's rest neither).
struct Standing {
  int tokens = 0;
  std::vector<int32_t> pending;
  int32_t last_token = -1;
};

class Sequence {
 public:
  // `chunks`: lengths of the prompt's chunks (runtime/cache/chunk_plan.h), the decode tail of a
  // score request included. `max_positions`: where a sequence ends whatever was asked for.
  Sequence(RequestId id, Request request, std::shared_ptr<TokenSink> sink,
           const Tokenizer* tokenizer, std::vector<int> chunks, int max_positions,
           absl::Time submitted);

  RequestId id() const { return id_; }
  const Request& request() const { return request_; }
  absl::Time submitted() const { return submitted_; }

  // ---- Launching ----
  int lane = -1;           // while it holds one
  int group = -1;          // micro-batch that its decode steps belong to
  LaneImagePtr image;      // what its lane is to begin with; null: nothing, or what is in the lane
  bool lost = false;       // its session is: it cannot start
  bool restoring = false;  // until the step with the image is known to have worked
  bool prefilling() const { return next_chunk_ < chunks_.size(); }
  // Whether a decode step could be launched now: its last token is known and none is in flight.
  bool ready_to_decode() const;
  // Whether one could be launched with the token that is in flight. Where that token ends the
  // sequence, the step was in vain; so a session, whose lane must not see it, waits, and one whose
  // likeliest tokens are told, which the step waits for.
  bool may_decode_ahead() const;
  // Whether it must hear of the token in flight first, and then decodes on.
  bool waits_to_decode() const;
  // Tokens of the next prefill chunk or piece, given room for `budget` tokens: a piece of the first
  // chunk takes what fits, unless that is less than `least`, and leaves no less than that; later
  // chunks are whole or 0.
  int NextPrefillTokens(int budget, int least) const;
  // The next chunk of `tokens` tokens (prefill), or the decode step (1 token). Advances.
  pipeline::PlanChunk TakePrefill(int tokens);
  pipeline::PlanChunk TakeDecode();
  // Tokens that `state` has need not be processed; they end at a chunk boundary. Before the first
  // chunk.
  void BeginWith(LaneImagePtr state);
  // Whether the next chunk begins at the request's prefix mark, and the tokens before were
  // processed here.
  bool at_prefix_mark() const;
  void MarkStarted(absl::Time now);
  bool started() const { return started_.has_value(); }

  // ---- Results, in the order of the steps ----
  // The first three return true once the sequence is finished; the sink has heard its tokens, not
  // yet OnFinish.
  bool OnSampled(const pipeline::SampledTokenResult& sampled, absl::Time now);
  bool OnScored(pipeline::ScoredChunk&& scored);
  bool OnHidden(const pipeline::HiddenResult& hidden);
  void OnTrace(const pipeline::ChunkTraceResult& trace);
  // Set by OnSampled where the model's logits were all non-finite.
  const absl::Status& error() const { return error_; }

  int new_tokens() const { return static_cast<int>(generated_.size()); }
  // Positions that have been launched, but for one that nothing comes of.
  int tokens_processed() const { return launched_ - ahead_; }
  // Whether anything has been launched. False: the lane is as it was.
  bool progressed() const { return launched_ > begun_at_; }
  Standing standing() const;
  Usage usage() const;
  // Tells the sink the end. Once.
  void Finish(absl::Time now, std::optional<CacheReport> cache);
  void Fail(const absl::Status& status);

 private:
  bool StopsAt(int32_t token) const;
  int prompt_end() const;  // position behind the prompt
  // Whether one token is in flight and, by their number, not the last.
  bool decodes_on() const;
  bool heard_before_next() const {
    return request_.session.has_value() || request_.response.top_logprobs > 0;
  }
  void Emit(const TokenDelta& delta);

  RequestId id_;
  Request request_;
  std::shared_ptr<TokenSink> sink_;
  std::vector<int> chunks_;
  int max_positions_;
  absl::Time submitted_;
  std::optional<absl::Time> started_;
  std::optional<absl::Time> first_token_;

  size_t next_chunk_ = 0;
  int piece_done_ = 0;  // tokens of the chunk at hand that have been launched
  int begun_at_ = 0;    // tokens that its lane began with
  int launched_ = 0;    // tokens of the sequence that have been launched, or begun with
  int tokens_in_flight_ = 0;
  int ahead_ = 0;  // tokens launched before it was known whether the sequence goes on
  std::vector<int32_t> generated_;

  const Tokenizer* tokenizer_;
  std::optional<Detokenizer> detokenizer_;
  std::optional<StopMatcher> stops_;
  FinishReason reason_ = FinishReason::kLength;
  std::string stop_;
  std::vector<int32_t> eos_;
  ScoreResult score_;
  std::vector<float> hidden_;
  size_t scored_tokens_ = 0;
  absl::Status error_;
};

}  // namespace keyline
