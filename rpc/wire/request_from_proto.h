// Requests as they come from the wire, checked field by field and tokenised: the one place where a
// client's numbers are bounded. Called on gRPC threads.
//
// Every error is INVALID_ARGUMENT that names field, limit and value. What depends on lanes and
// positions (does the prompt fit, is the policy enabled) is Engine::Submit's to say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "keyline/v1/inference.pb.h"
#include "runtime/config/cache_config.h"
#include "runtime/engine/request.h"
#include "runtime/engine/session_store.h"
#include "runtime/text/tokenizer.h"

namespace keyline {

// Bounds that inference.proto names.
constexpr int kMaxRequestIdBytes = 128;
constexpr int kDefaultNewTokens = 256;
constexpr int kMaxNewTokens = 1 << 24;
constexpr int kMaxStopTokens = 64;
constexpr int kMaxStopStrings = 16;
constexpr int kMaxStopStringBytes = 256;
constexpr float kMaxTemperature = 100;

// What requests are checked against.
struct RequestRules {
  std::string model;  // its name
  int vocab_size = 0;
  int layers = 0;
  LanePolicy default_cache;
  const Tokenizer* tokenizer = nullptr;  // null: token ids only
  int64_t max_text_bytes = 0;
  const SessionStore* sessions = nullptr;  // null: none
};

// NOT_FOUND for a model that is not the one served, or an unknown session. The deadline is the
// caller's to set. A seed that was not given is drawn here.
absl::StatusOr<Request> RequestFromProto(const v1::GenerateRequest& request,
                                         const RequestRules& rules);
absl::StatusOr<Request> RequestFromProto(const v1::ScoreRequest& request,
                                         const RequestRules& rules);
absl::StatusOr<Request> RequestFromProto(const v1::EmbedRequest& request,
                                         const RequestRules& rules);

// At least one token.
absl::StatusOr<std::vector<int32_t>> PromptFromProto(const v1::Prompt& prompt,
                                                     const RequestRules& rules);

// `ids` as our numbers; each must be in the vocabulary. `field` is for the message.
absl::StatusOr<std::vector<int32_t>> TokenIdsFromProto(
    const google::protobuf::RepeatedField<uint32_t>& ids, const std::string& field,
    const RequestRules& rules);

}  // namespace keyline
