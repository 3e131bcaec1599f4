#include "rpc/wire/conversation_prompt.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/device/status_macros.h"
#include "rpc/wire/cache_policy_proto.h"
#include "rpc/wire/status_to_grpc.h"
#include "runtime/text/chat_template.h"

namespace keyline {
namespace {

google::protobuf::Timestamp TimeToProto(absl::Time time) {
  google::protobuf::Timestamp to;
  const timespec since = absl::ToTimespec(time);
  to.set_seconds(since.tv_sec);
  to.set_nanos(static_cast<int32_t>(since.tv_nsec));
  return to;
}

// What the text library refuses, under the field's name.
template <typename T>
absl::StatusOr<T> UnderField(const std::string& field, absl::StatusOr<T> result) {
  if (result.ok() || absl::IsInternal(result.status())) return result;
  return FieldError(field, std::string(result.status().message()));
}

// The messages, after the checks of whole prompts.
absl::StatusOr<std::vector<ChatMessage>> MessagesOf(const std::string& field, const v1::Chat& chat,
                                                    const RequestRules& rules) {
  if (rules.tokenizer == nullptr) {
    return FieldError(field, "this server has no tokenizer; give token_ids");
  }
  int64_t bytes = 0;
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    bytes += message.role().size() + message.content().size();
    messages.push_back({message.role(), message.content()});
  }
  if (bytes > rules.max_text_bytes) {
    return FieldError(field, absl::StrCat("got ", bytes, " bytes, at most ", rules.max_text_bytes));
  }
  return messages;
}

absl::StatusOr<std::vector<int32_t>> SystemMessageTokens(const std::string& field,
                                                         const v1::Chat& chat,
                                                         const RequestRules& rules) {
  ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages, MessagesOf(field, chat, rules));
  if (messages.empty() || messages[0].role != "system") {
    return FieldError(field, "its first message must be the system's");
  }
  return UnderField(field, EncodeSystemMessage(*rules.tokenizer, messages[0].content));
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> TurnFromProto(const v1::Prompt& prompt,
                                                   const SessionInfo& session,
                                                   const RequestRules& rules) {
  if (session.tokens == 0) return PromptFromProto(prompt, rules);
  if (prompt.source_case() == v1::Prompt::SOURCE_NOT_SET) return std::vector<int32_t>();
  if (prompt.source_case() == v1::Prompt::kText) {
    if (prompt.has_add_bos() && prompt.add_bos()) {
      return FieldError("prompt.add_bos", "must be false or unset: the session has begun");
    }
    v1::Prompt plain = prompt;
    plain.set_add_bos(false);
    return PromptFromProto(plain, rules);
  }
  if (prompt.source_case() != v1::Prompt::kChat) return PromptFromProto(prompt, rules);
  if (prompt.has_add_bos() || prompt.has_parse_special()) return PromptFromProto(prompt, rules);
  ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages,
                   MessagesOf("prompt.chat", prompt.chat(), rules));
  return UnderField("prompt.chat", EncodeChatContinuation(*rules.tokenizer, messages,
                                                          session.turns > 0, session.last_token));
}

absl::Status MarkedPromptFromProto(const v1::GenerateRequest& request, const RequestRules& rules,
                                   Request* to) {
  const v1::Prompt& prompt = request.prompt();
  std::vector<int32_t> prefix;
  switch (request.prefix().mark_case()) {
    case v1::PrefixMark::kTokens: {
      ASSIGN_OR_RETURN(to->prompt, PromptFromProto(prompt, rules));
      const uint32_t tokens = request.prefix().tokens();
      if (tokens < 1 || tokens >= to->prompt.size()) {
        return FieldError("prefix.tokens",
                          absl::StrCat("got ", tokens, ", must be from 1 to ",
                                       to->prompt.size() - 1, ", less than the prompt has"));
      }
      to->prefix_tokens = static_cast<int>(tokens);
      return absl::OkStatus();
    }
    case v1::PrefixMark::kText: {
      if (prompt.source_case() != v1::Prompt::kText) {
        return FieldError("prefix.text", "goes before prompt.text, which is not set");
      }
      v1::Prompt part = prompt;
      part.set_text(request.prefix().text());
      ASSIGN_OR_RETURN(prefix, UnderField("prefix.text", PromptFromProto(part, rules)));
      part.set_text(prompt.text());
      part.set_add_bos(false);
      ASSIGN_OR_RETURN(to->prompt, PromptFromProto(part, rules));
      to->prompt.insert(to->prompt.begin(), prefix.begin(), prefix.end());
      break;
    }
    case v1::PrefixMark::kSystemMessage: {
      if (!request.prefix().system_message()) {
        return FieldError("prefix.system_message", "must be true; leave prefix out for none");
      }
      ASSIGN_OR_RETURN(to->prompt, PromptFromProto(prompt, rules));
      ASSIGN_OR_RETURN(prefix, SystemMessageTokens("prefix.system_message", prompt.chat(), rules));
      if (prefix.size() >= to->prompt.size() ||
          !std::equal(prefix.begin(), prefix.end(), to->prompt.begin())) {
        return FieldError("prefix.system_message",
                          "this model's chat template writes it together with what follows");
      }
      break;
    }
    case v1::PrefixMark::MARK_NOT_SET:
      return FieldError("prefix", "not set, must be one of tokens, text, system_message");
  }
  to->prefix_tokens = static_cast<int>(prefix.size());
  return absl::OkStatus();
}

absl::StatusOr<SessionOptions> SessionOptionsFromProto(const v1::CreateSessionRequest& request,
                                                       const RequestRules& rules) {
  SessionOptions options;
  if (request.has_cache()) {
    ASSIGN_OR_RETURN(options.cache,
                     LanePolicyFromProto(request.cache(), rules.default_cache, rules.layers));
  }
  if (!request.has_prefix()) return options;
  if (!request.prefix().has_chat()) {
    ASSIGN_OR_RETURN(options.prefix, PromptFromProto(request.prefix(), rules));
    return options;
  }
  if (request.prefix().chat().messages_size() != 1) {
    return FieldError("prefix.chat", absl::StrCat("got ", request.prefix().chat().messages_size(),
                                                  " messages, must be one, the system's"));
  }
  ASSIGN_OR_RETURN(options.prefix,
                   SystemMessageTokens("prefix.chat", request.prefix().chat(), rules));
  return options;
}

v1::Session SessionToProto(const SessionInfo& info) {
  v1::Session to;
  to.set_id(info.id);
  *to.mutable_cache() = LanePolicyToProto(info.cache);
  to.set_tokens(info.tokens);
  to.set_turns(info.turns);
  to.set_busy(info.busy);
  to.set_on_lane(info.on_lane);
  to.set_memory_bytes(info.memory_bytes);
  *to.mutable_created() = TimeToProto(info.created);
  *to.mutable_used() = TimeToProto(info.used);
  return to;
}

v1::SavedSession SavedSessionToProto(const SavedSession& saved) {
  v1::SavedSession to;
  to.set_name(saved.name);
  to.set_bytes(saved.bytes);
  *to.mutable_saved() = TimeToProto(saved.saved);
  return to;
}

}  // namespace keyline
