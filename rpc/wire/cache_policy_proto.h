// LanePolicy to and from keyline.v1.CachePolicy: where a policy's name in configurations meets its
// message.
#pragma once

#include "absl/status/statusor.h"
#include "keyline/v1/cache.pb.h"
#include "runtime/config/cache_config.h"

namespace keyline {

// `server`: the server's default, whose values stand in for fields that are not set. `layers`: of
// the model. Checks that each number is one, in the bounds that cache.proto names; whether this
// server can give such a lane is the engine's to say. INVALID_ARGUMENT names the field.
absl::StatusOr<LanePolicy> LanePolicyFromProto(const v1::CachePolicy& policy,
                                               const LanePolicy& server, int layers);

v1::CachePolicy LanePolicyToProto(const LanePolicy& policy);

}  // namespace keyline
