#include "runtime/engine/sequence.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "runtime/text/tokenizer.h"

namespace keyline {

Sequence::Sequence(RequestId id, Request request, std::shared_ptr<TokenSink> sink,
                   const Tokenizer* tokenizer, std::vector<int> chunks, int max_positions,
                   absl::Time submitted)
    : id_(id),
      request_(std::move(request)),
      sink_(std::move(sink)),
      chunks_(std::move(chunks)),
      max_positions_(max_positions),
      submitted_(submitted),
      begun_at_(request_.first_position),
      launched_(request_.first_position),
      tokenizer_(tokenizer) {
  if (tokenizer_ != nullptr) eos_ = tokenizer_->eos_ids();
  const bool wants_text = request_.response.text || !request_.stop.stop_strings.empty();
  if (tokenizer_ != nullptr && wants_text && !request_.reads_only()) {
    detokenizer_.emplace(*tokenizer_);
    stops_.emplace(request_.stop.stop_strings);
  }
}

bool Sequence::ready_to_decode() const {
  return !request_.reads_only() && !prefilling() && tokens_in_flight_ == 0 && !generated_.empty();
}

bool Sequence::decodes_on() const {
  const int then = new_tokens() + 1;
  return !request_.reads_only() && !prefilling() && tokens_in_flight_ == 1 &&
         then < request_.stop.max_new_tokens && prompt_end() + then < max_positions_;
}

bool Sequence::may_decode_ahead() const { return decodes_on() && !heard_before_next(); }
bool Sequence::waits_to_decode() const { return decodes_on() && heard_before_next(); }

int Sequence::NextPrefillTokens(int budget, int least) const {
  const int rest = chunks_[next_chunk_] - piece_done_;
  if (rest <= budget) return rest;
  const bool first_chunk = launched_ == piece_done_;
  if (!first_chunk) return 0;
  const int piece = std::min(budget, rest - least);
  return piece >= least ? piece : 0;
}

pipeline::PlanChunk Sequence::TakePrefill(int tokens) {
  CHECK(prefilling());
  CHECK_GT(tokens, 0);
  pipeline::PlanChunk chunk;
  chunk.set_lane(lane);
  chunk.set_first_position(launched_);
  chunk.set_takes_mass(launched_ > piece_done_);  // not the sequence's first
  chunk.set_chunk_tokens(chunks_[next_chunk_]);
  chunk.set_chunk_position(launched_ - piece_done_);
  for (int i = 0; i < tokens; ++i) {
    chunk.add_token_ids(request_.prompt[launched_ - request_.first_position + i]);
  }
  launched_ += tokens;
  piece_done_ += tokens;
  if (piece_done_ == chunks_[next_chunk_]) {
    piece_done_ = 0;
    ++next_chunk_;
    chunk.set_trace(request_.score.enabled && request_.score.trace);
  }
  if (request_.score.enabled) {
    chunk.set_output(request_.score.logits ? pipeline::OUTPUT_LOGITS : pipeline::OUTPUT_LOGPROBS);
    for (int i = 0; i < tokens; ++i) {
      const size_t next = chunk.first_position() + i + 1;
      chunk.add_targets(next < request_.prompt.size() ? request_.prompt[next] : -1);
    }
  } else if (request_.embed.enabled) {
    chunk.set_hidden_ends(!prefilling());
    if (!prefilling() || request_.embed.pooling == Pooling::kMean) {
      chunk.set_output(pipeline::OUTPUT_HIDDEN);
    }
    chunk.set_hidden_layer(request_.embed.layer);
    chunk.set_hidden_pooling(request_.embed.pooling == Pooling::kMean ? pipeline::HIDDEN_MEAN
                                                                      : pipeline::HIDDEN_LAST);
  } else if (!prefilling()) {
    chunk.set_output(pipeline::OUTPUT_SAMPLE);
    chunk.set_top_logprobs(request_.response.top_logprobs);
    ++tokens_in_flight_;
  }
  return chunk;
}

pipeline::PlanChunk Sequence::TakeDecode() {
  CHECK(ready_to_decode() || may_decode_ahead());
  pipeline::PlanChunk chunk;
  chunk.set_lane(lane);
  chunk.set_first_position(launched_);
  chunk.set_takes_mass(true);
  chunk.set_chunk_tokens(1);
  chunk.set_chunk_position(launched_);
  ahead_ = tokens_in_flight_;
  chunk.set_token_is_drawn(ahead_ > 0);
  chunk.add_token_ids(ahead_ > 0 ? 0 : generated_.back());
  chunk.set_output(pipeline::OUTPUT_SAMPLE);
  chunk.set_top_logprobs(request_.response.top_logprobs);
  ++launched_;
  ++tokens_in_flight_;
  return chunk;
}

void Sequence::MarkStarted(absl::Time now) {
  started_ = now;
  sink_->OnStart(usage());
}

bool Sequence::StopsAt(int32_t token) const {
  const StopConditions& stop = request_.stop;
  if (new_tokens() < stop.min_new_tokens) return false;
  if (std::find(stop.stop_token_ids.begin(), stop.stop_token_ids.end(), token) !=
      stop.stop_token_ids.end()) {
    return true;
  }
  return !stop.ignore_eos && std::find(eos_.begin(), eos_.end(), token) != eos_.end();
}

bool Sequence::OnSampled(const pipeline::SampledTokenResult& sampled, absl::Time now) {
  --tokens_in_flight_;
  if (sampled.token() < 0) {
    error_ = absl::InternalError("the model's logits hold no finite number; request ended");
    return true;
  }
  if (!first_token_.has_value()) first_token_ = now;
  const int32_t token = sampled.token();
  generated_.push_back(token);
  const bool stop_token = StopsAt(token);
  bool finished = stop_token;
  const bool shown = !stop_token || request_.stop.include_stop;

  TokenDelta delta;
  delta.first_index = new_tokens() - 1;
  if (shown) {
    delta.tokens.push_back(token);
    if (request_.response.logprobs || request_.response.top_logprobs > 0) {
      delta.logprobs.push_back(sampled.logprob());
      std::vector<TopLogProb> top;
      top.reserve(sampled.top_tokens_size());
      for (int i = 0; i < sampled.top_tokens_size(); ++i) {
        top.push_back({sampled.top_tokens(i), sampled.top_logprobs(i)});
      }
      if (!top.empty()) delta.top_logprobs.push_back(std::move(top));
    }
  }
  std::string text;
  if (detokenizer_.has_value()) {
    const std::string piece = shown ? detokenizer_->Push(token) : "";
    // Before min_new_tokens a stop string is text like any other.
    if (new_tokens() < request_.stop.min_new_tokens) {
      text = piece;
    } else {
      StopMatcher::Result result = stops_->Push(piece);
      text = std::move(result.text);
      if (result.match.has_value()) {
        finished = true;
        stop_ = *result.match;
        if (request_.stop.include_stop) text += stop_;
      }
    }
  }
  if (finished) {
    reason_ = FinishReason::kStop;
  } else if (new_tokens() >= request_.stop.max_new_tokens ||
             prompt_end() + new_tokens() >= max_positions_) {
    finished = true;
    reason_ = FinishReason::kLength;
  }
  if (finished && detokenizer_.has_value() && stop_.empty()) {
    StopMatcher::Result rest = stops_->Push(detokenizer_->Flush());
    text += rest.text + stops_->Flush();
  }
  if (request_.response.text) delta.text = std::move(text);
  Emit(delta);
  if (!finished) ahead_ = 0;
  return finished;
}

void Sequence::Emit(const TokenDelta& delta) {
  if (!delta.tokens.empty() || !delta.text.empty()) sink_->OnTokens(delta);
}

bool Sequence::OnScored(pipeline::ScoredChunk&& scored) {
  if (request_.score.logits) {
    std::vector<float> rows(scored.logits().size() / sizeof(float));
    std::memcpy(rows.data(), scored.logits().data(), scored.logits().size());
    sink_->OnLogits(static_cast<int>(scored_tokens_), rows);
  }
  scored_tokens_ += scored.logprobs_size();
  score_.logprobs.insert(score_.logprobs.end(), scored.logprobs().begin(), scored.logprobs().end());
  if (scored_tokens_ < request_.prompt.size()) return false;
  score_.logprobs.pop_back();  // nothing follows the last token
  reason_ = FinishReason::kStop;
  return true;
}

bool Sequence::OnHidden(const pipeline::HiddenResult& hidden) {
  hidden_.assign(hidden.values().begin(), hidden.values().end());
  if (!std::all_of(hidden_.begin(), hidden_.end(), [](float x) { return std::isfinite(x); })) {
    error_ = absl::InternalError("the model's hidden states are not finite; request ended");
  }
  reason_ = FinishReason::kStop;
  return true;
}

void Sequence::OnTrace(const pipeline::ChunkTraceResult& trace) {
  ChunkTrace out;
  out.start = trace.start();
  out.tokens = trace.tokens();
  for (const pipeline::LayerTrace& layer : trace.layers()) {
    auto& heads = out.kept.emplace_back();
    for (const pipeline::KeptPositions& head : layer.heads()) {
      heads.emplace_back(head.positions().begin(), head.positions().end());
    }
  }
  score_.trace.push_back(std::move(out));
}

Usage Sequence::usage() const {
  return {
      .prompt_tokens = prompt_end(), .cached_prompt_tokens = begun_at_, .new_tokens = new_tokens()};
}

int Sequence::prompt_end() const {
  return request_.first_position + static_cast<int>(request_.prompt.size());
}

void Sequence::BeginWith(LaneImagePtr state) {
  CHECK(!progressed());
  while (launched_ < state->tokens) launched_ += chunks_.at(next_chunk_++);
  CHECK_EQ(launched_, state->tokens) << "a state that ends within a chunk";
  begun_at_ = launched_;
  image = std::move(state);
}

bool Sequence::at_prefix_mark() const {
  return request_.prefix_tokens > 0 && launched_ == request_.prefix_tokens && progressed() &&
         piece_done_ == 0;
}

Standing Sequence::standing() const {
  // A first chunk that was cut within its pieces is no state to go on from: back to the start.
  Standing now{.tokens = launched_ - piece_done_, .pending = {}, .last_token = -1};
  if (now.tokens < prompt_end()) {
    now.pending.assign(request_.prompt.begin() + (now.tokens - request_.first_position),
                       request_.prompt.end());
  }
  if (!generated_.empty() && tokens_in_flight_ == 0) now.pending.push_back(generated_.back());
  now.last_token = generated_.empty() ? request_.prompt.back() : generated_.back();
  return now;
}

void Sequence::Finish(absl::Time now, std::optional<CacheReport> cache) {
  if (!error_.ok()) return Fail(error_);
  keyline::Finish finish;
  finish.reason = reason_;
  finish.stop = stop_;
  finish.usage = usage();
  finish.timings.queued = started_.value_or(now) - submitted_;
  finish.timings.first_token = first_token_.value_or(now) - submitted_;
  finish.timings.total = now - submitted_;
  finish.cache = std::move(cache);
  if (request_.score.enabled) finish.score = std::move(score_);
  finish.hidden = std::move(hidden_);
  sink_->OnFinish(finish);
}

void Sequence::Fail(const absl::Status& status) { sink_->OnError(status); }

}  // namespace keyline
