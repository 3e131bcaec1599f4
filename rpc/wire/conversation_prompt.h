// Prompts that do not stand alone: what continues a session, and what other requests share.
// INVALID_ARGUMENT names the field, as everywhere in wire/.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "keyline/v1/inference.pb.h"
#include "keyline/v1/sessions.pb.h"
#include "rpc/wire/request_from_proto.h"
#include "runtime/engine/session_store.h"

namespace keyline {

// The tokens of a turn's prompt; none where it is not set. Its messages continue the chat as it
// stands, and only a session's first text gets BOS.
absl::StatusOr<std::vector<int32_t>> TurnFromProto(const v1::Prompt& prompt,
                                                   const SessionInfo& session,
                                                   const RequestRules& rules);

// A prompt with its prefix mark: fills in `prompt` and `prefix_tokens`.
absl::Status MarkedPromptFromProto(const v1::GenerateRequest& request, const RequestRules& rules,
                                   Request* to);

absl::StatusOr<SessionOptions> SessionOptionsFromProto(const v1::CreateSessionRequest& request,
                                                       const RequestRules& rules);

v1::Session SessionToProto(const SessionInfo& info);
v1::SavedSession SavedSessionToProto(const SavedSession& saved);

}  // namespace keyline
