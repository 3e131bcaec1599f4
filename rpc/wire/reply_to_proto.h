// What the engine answers, as messages. Whatever it says is taken as it is: nothing here can fail.
#pragma once

#include <google/protobuf/duration.pb.h>

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

v1::GetLoadResponse LoadToProto(const EngineLoad& load);

}  // namespace keyline
