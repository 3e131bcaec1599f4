#include "rpc/wire/reply_to_proto.h"

namespace keyline {
namespace {

v1::Usage UsageToProto(const Usage& usage) {
  v1::Usage to;
  to.set_prompt_tokens(usage.prompt_tokens);
  to.set_new_tokens(usage.new_tokens);
  to.set_cached_prompt_tokens(usage.cached_prompt_tokens);
  return to;
}

v1::Timings TimingsToProto(const Timings& timings) {
  v1::Timings to;
  *to.mutable_queued() = DurationToProto(timings.queued);
  *to.mutable_first_token() = DurationToProto(timings.first_token);
  *to.mutable_total() = DurationToProto(timings.total);
  return to;
}

v1::CacheReport CacheReportToProto(const CacheReport& report) {
  v1::CacheReport to;
  to.set_policy(report.policy);
  to.set_storage(report.storage);
  to.set_lane_bytes(report.lane_bytes);
  to.set_chunk_size(report.chunk_size);
  for (const LayerCacheReport& layer : report.layers) {
    v1::LayerCacheReport* row = to.add_layers();
    row->set_layer(layer.layer);
    row->set_cache_length(layer.cache_length);
    row->set_slots_used(layer.slots_used);
    row->set_evicted(layer.evicted);
    row->set_protected_slots(layer.protected_slots);
  }
  return to;
}

}  // namespace

google::protobuf::Duration DurationToProto(absl::Duration duration) {
  google::protobuf::Duration to;
  to.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  to.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return to;
}

void AppendDelta(const TokenDelta& delta, v1::Delta* to) {
  if (to->token_ids_size() == 0) to->set_first_index(delta.first_index);
  to->mutable_token_ids()->Add(delta.tokens.begin(), delta.tokens.end());
  to->mutable_text()->append(delta.text);
  to->mutable_logprobs()->Add(delta.logprobs.begin(), delta.logprobs.end());
  for (const std::vector<TopLogProb>& place : delta.top_logprobs) {
    v1::TopLogProbs* top = to->add_top_logprobs();
    for (const TopLogProb& candidate : place) {
      top->add_token_ids(candidate.token);
      top->add_logprobs(candidate.logprob);
    }
  }
}

v1::Finish FinishToProto(const Finish& finish) {
  v1::Finish to;
  to.set_reason(finish.reason == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                     : v1::FINISH_REASON_LENGTH);
  to.set_stop(finish.stop);
  *to.mutable_usage() = UsageToProto(finish.usage);
  *to.mutable_timings() = TimingsToProto(finish.timings);
  if (finish.cache) *to.mutable_cache() = CacheReportToProto(*finish.cache);
  return to;
}

v1::ScoreResponse ScoreToProto(const std::vector<int32_t>& tokens, const Finish& finish) {
  v1::ScoreResponse to;
  to.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  if (finish.score) {
    to.mutable_logprobs()->Add(finish.score->logprobs.begin(), finish.score->logprobs.end());
  }
  *to.mutable_usage() = UsageToProto(finish.usage);
  *to.mutable_timings() = TimingsToProto(finish.timings);
  if (finish.cache) *to.mutable_cache() = CacheReportToProto(*finish.cache);
  return to;
}

v1::EmbedResponse EmbedToProto(const EmbedOptions& asked, const Finish& finish) {
  v1::EmbedResponse to;
  to.mutable_values()->Add(finish.hidden.begin(), finish.hidden.end());
  to.set_layer(asked.layer);
  to.set_pooling(asked.pooling == Pooling::kMean ? v1::POOLING_MEAN : v1::POOLING_LAST);
  *to.mutable_usage() = UsageToProto(finish.usage);
  *to.mutable_timings() = TimingsToProto(finish.timings);
  if (finish.cache) *to.mutable_cache() = CacheReportToProto(*finish.cache);
  return to;
}

v1::CacheEvent CacheEventToProto(const CacheEvent& event, const std::set<int>& layers) {
  v1::CacheEvent to;
  to.set_request(event.request);
  to.set_request_id(event.label);
  to.set_first_position(event.first_position);
  to.set_tokens(event.tokens);
  for (size_t l = 0; l < event.layers.size(); ++l) {
    if (!layers.empty() && layers.count(static_cast<int>(l)) == 0) continue;
    v1::LayerCacheEvent* layer = to.add_layers();
    layer->set_layer(l);
    for (const HeadCacheEvent& head : event.layers[l]) {
      v1::HeadCacheEvent* row = layer->add_heads();
      row->mutable_slots()->Add(head.slots.begin(), head.slots.end());
      row->mutable_moved_from()->Add(head.moved_from.begin(), head.moved_from.end());
      row->mutable_moved_to()->Add(head.moved_to.begin(), head.moved_to.end());
      row->mutable_evicted()->Add(head.evicted.begin(), head.evicted.end());
    }
  }
  return to;
}

v1::GetCacheStatsResponse CacheStatsToProto(const std::vector<LayerCacheStats>& stats) {
  v1::GetCacheStatsResponse to;
  for (const LayerCacheStats& layer : stats) {
    v1::LayerCacheStats* row = to.add_layers();
    row->set_layer(layer.layer);
    row->set_rank(layer.rank);
    row->set_capacity(layer.capacity);
    row->set_slots_used(layer.slots_used);
    row->set_evicted(layer.evicted);
    row->set_bytes(layer.bytes);
  }
  return to;
}

v1::GetLoadResponse LoadToProto(const EngineLoad& load) {
  v1::GetLoadResponse to;
  to.set_lanes(load.lanes);
  to.set_running(load.running);
  to.set_waiting(load.waiting);
  to.set_waiting_tokens(load.waiting_tokens);
  to.set_draining(load.draining);
  to.set_steps(load.steps);
  to.set_requests_accepted(load.requests_accepted);
  to.set_requests_finished(load.requests_finished);
  to.set_requests_cancelled(load.requests_cancelled);
  to.set_requests_failed(load.requests_failed);
  to.set_requests_refused(load.requests_refused);
  to.set_prompt_tokens(load.prompt_tokens);
  to.set_generated_tokens(load.generated_tokens);
  return to;
}

}  // namespace keyline
