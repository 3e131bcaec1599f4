// What the engine answers, as messages. Whatever it says is taken as it is: nothing here can fail.
#pragma once

#include <google/protobuf/duration.pb.h>

#include <set>
#include <vector>

#include "absl/time/time.h"
#include "keyline/v1/control.pb.h"
#include "keyline/v1/inference.pb.h"
#include "runtime/engine/request.h"
#include "runtime/engine/request_queue.h"

namespace keyline {

google::protobuf::Duration DurationToProto(absl::Duration duration);

// Appends new tokens to `to`, which may hold earlier ones.
void AppendDelta(const TokenDelta& delta, v1::Delta* to);

v1::Finish FinishToProto(const Finish& finish);

v1::ScoreResponse ScoreToProto(const std::vector<int32_t>& tokens, const Finish& finish);

v1::EmbedResponse EmbedToProto(const EmbedOptions& asked, const Finish& finish);

// Of `layers`; empty: of all.
v1::CacheEvent CacheEventToProto(const CacheEvent& event, const std::set<int>& layers);

v1::GetCacheStatsResponse CacheStatsToProto(const std::vector<LayerCacheStats>& stats);

v1::GetLoadResponse LoadToProto(const EngineLoad& load);

}  // namespace keyline
