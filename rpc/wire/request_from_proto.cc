#include "rpc/wire/request_from_proto.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "kernels/device/status_macros.h"
#include "rpc/wire/cache_policy_proto.h"
#include "rpc/wire/conversation_prompt.h"
#include "rpc/wire/field_checker.h"
#include "runtime/text/chat_template.h"

namespace keyline {
namespace {

// Some implementations of random_device read a file: one a thread, and a generator on top.
uint64_t DrawSeed() {
  thread_local std::mt19937_64 generator((static_cast<uint64_t>(std::random_device{}()) << 32) |
                                         std::random_device{}());
  return generator();
}

absl::Status CheckLabel(const std::string& request_id, const std::string& model,
                        const RequestRules& rules) {
  if (request_id.size() > kMaxRequestIdBytes) {
    return FieldError("request_id", absl::StrCat("got ", request_id.size(), " bytes, at most ",
                                                 kMaxRequestIdBytes));
  }
  for (size_t i = 0; i < request_id.size(); ++i) {
    if (!absl::ascii_isprint(request_id[i])) {
      return FieldError("request_id", absl::StrCat("byte ", i, " is not printable ASCII"));
    }
  }
  if (!model.empty() && model != rules.model) {
    return absl::NotFoundError(absl::StrCat("model: '", model.substr(0, 200),
                                            "' is not served here, but '", rules.model, "' is"));
  }
  return absl::OkStatus();
}

absl::Status TakeSampling(const v1::Sampling& from, const RequestRules& rules, SamplingParams* to) {
  FieldChecker check("sampling.");
  if (from.has_temperature()) {
    check.Take("temperature", from.temperature(), 0.f, kMaxTemperature, &to->temperature);
  }
  if (from.has_top_k()) {
    // More than the vocabulary is the same as all of it.
    to->top_k = from.top_k() < static_cast<uint32_t>(rules.vocab_size) ? from.top_k() : 0;
  }
  if (from.has_top_p()) {
    if (from.top_p() == 0) check.Refuse("top_p", "got 0, must be above 0 and at most 1");
    check.Take("top_p", from.top_p(), 0.f, 1.f, &to->top_p);
  }
  if (from.has_min_p()) check.Take("min_p", from.min_p(), 0.f, 1.f, &to->min_p);
  to->seed = from.has_seed() ? from.seed() : DrawSeed();
  return check.status();
}

absl::Status TakeStopStrings(const v1::Stopping& from, const RequestRules& rules,
                             FieldChecker& check, StopConditions* to) {
  const int count = from.stop_strings_size();
  if (count > kMaxStopStrings) {
    check.Refuse("stop_strings", absl::StrCat("got ", count, ", at most ", kMaxStopStrings));
  }
  if (count > 0 && rules.tokenizer == nullptr) {
    check.Refuse("stop_strings", "this server has no tokenizer; give stop_token_ids");
  }
  for (int i = 0; i < count && check.status().ok(); ++i) {
    const std::string& text = from.stop_strings(i);
    if (text.empty() || text.size() > kMaxStopStringBytes) {
      check.Refuse(
          absl::StrCat("stop_strings[", i, "]"),
          absl::StrCat("got ", text.size(), " bytes, must be from 1 to ", kMaxStopStringBytes));
    }
    to->stop_strings.push_back(text);
  }
  return check.status();
}

absl::Status TakeStopping(const v1::Stopping& from, const RequestRules& rules, StopConditions* to) {
  FieldChecker check("stopping.");
  to->max_new_tokens = kDefaultNewTokens;
  if (from.has_max_new_tokens()) {
    check.Take("max_new_tokens", from.max_new_tokens(), 1u, uint32_t{kMaxNewTokens},
               &to->max_new_tokens);
  }
  if (from.has_min_new_tokens()) {
    check.Take("min_new_tokens", from.min_new_tokens(), 0u,
               static_cast<uint32_t>(to->max_new_tokens), &to->min_new_tokens);
  }
  to->ignore_eos = from.ignore_eos();
  to->include_stop = from.include_stop();
  if (from.stop_token_ids_size() > kMaxStopTokens) {
    check.Refuse("stop_token_ids",
                 absl::StrCat("got ", from.stop_token_ids_size(), ", at most ", kMaxStopTokens));
  }
  RETURN_IF_ERROR(check.status());
  ASSIGN_OR_RETURN(to->stop_token_ids,
                   TokenIdsFromProto(from.stop_token_ids(), "stopping.stop_token_ids", rules));
  return TakeStopStrings(from, rules, check, to);
}

absl::Status TakeResponse(const v1::ResponseOptions& from, const RequestRules& rules,
                          ResponseOptions* to) {
  FieldChecker check("response.");
  to->text = from.has_text() ? from.text() : rules.tokenizer != nullptr;
  if (to->text && rules.tokenizer == nullptr) {
    check.Refuse("text", "this server has no tokenizer; leave text unset and read token_ids");
  }
  to->logprobs = from.logprobs();
  if (from.has_top_logprobs()) {
    check.Take("top_logprobs", from.top_logprobs(), 0u, uint32_t{kMaxTopLogProbs},
               &to->top_logprobs);
  }
  if (to->top_logprobs > 0 && !to->logprobs) {
    check.Refuse("top_logprobs", "needs response.logprobs");
  }
  to->cache_report = from.cache_report();
  return check.status();
}

// What the tokenizer or the chat template refuse, under the field's name: it is the prompt that
// does not suit the model.
absl::Status UnderField(const std::string& field, const absl::Status& status) {
  if (absl::IsInternal(status)) return status;
  return FieldError(field, std::string(status.message()));
}

absl::Status CheckTextBytes(const std::string& field, int64_t bytes, const RequestRules& rules) {
  if (rules.tokenizer == nullptr) {
    return FieldError(field, "this server has no tokenizer; give prompt.token_ids");
  }
  if (bytes > rules.max_text_bytes) {
    return FieldError(field, absl::StrCat("got ", bytes, " bytes, at most ", rules.max_text_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> EncodeText(const v1::Prompt& prompt,
                                                const RequestRules& rules) {
  RETURN_IF_ERROR(CheckTextBytes("prompt.text", prompt.text().size(), rules));
  EncodeOptions options;
  if (prompt.has_add_bos()) options.add_bos = prompt.add_bos();
  options.parse_special = prompt.parse_special();
  absl::StatusOr<std::vector<int32_t>> ids = rules.tokenizer->Encode(prompt.text(), options);
  if (!ids.ok()) return UnderField("prompt.text", ids.status());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeMessages(const v1::Prompt& prompt,
                                                    const RequestRules& rules) {
  int64_t bytes = 0;
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : prompt.chat().messages()) {
    bytes += message.role().size() + message.content().size();
    messages.push_back({message.role(), message.content()});
  }
  RETURN_IF_ERROR(CheckTextBytes("prompt.chat", bytes, rules));
  absl::StatusOr<std::vector<int32_t>> ids = EncodeChat(*rules.tokenizer, messages);
  if (!ids.ok()) return UnderField("prompt.chat", ids.status());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> ReadPrompt(const v1::Prompt& prompt,
                                                const RequestRules& rules) {
  if (prompt.source_case() != v1::Prompt::kText) {
    if (prompt.has_add_bos()) return FieldError("prompt.add_bos", "applies to prompt.text only");
    if (prompt.has_parse_special()) {
      return FieldError("prompt.parse_special", "applies to prompt.text only");
    }
  }
  switch (prompt.source_case()) {
    case v1::Prompt::kText:
      return EncodeText(prompt, rules);
    case v1::Prompt::kTokenIds:
      return TokenIdsFromProto(prompt.token_ids().ids(), "prompt.token_ids.ids", rules);
    case v1::Prompt::kChat:
      return EncodeMessages(prompt, rules);
    case v1::Prompt::SOURCE_NOT_SET:
      break;
  }
  return FieldError("prompt", "not set, must be one of text, token_ids, chat");
}

absl::Status TakeTurn(const v1::GenerateRequest& request, const RequestRules& rules, Request* to) {
  if (request.has_cache()) {
    return FieldError("cache", "not with session_id: a session has the policy it was created with");
  }
  if (request.has_prefix()) {
    return FieldError("prefix",
                      "not with session_id: a session has the prefix it was created with");
  }
  if (rules.sessions == nullptr) {
    return absl::FailedPreconditionError("session_id: this server has no sessions");
  }
  ASSIGN_OR_RETURN(const SessionInfo session, rules.sessions->Get(request.session_id()));
  to->session = {.id = session.id, .turn = session.turns};
  ASSIGN_OR_RETURN(to->prompt, TurnFromProto(request.prompt(), session, rules));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> TokenIdsFromProto(
    const google::protobuf::RepeatedField<uint32_t>& ids, const std::string& field,
    const RequestRules& rules) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= static_cast<uint32_t>(rules.vocab_size)) {
      return FieldError(absl::StrCat(field, "[", i, "]"),
                        absl::StrCat("got ", ids[i], ", must be below the vocabulary's size of ",
                                     rules.vocab_size));
    }
  }
  return std::vector<int32_t>(ids.begin(), ids.end());
}

absl::StatusOr<std::vector<int32_t>> PromptFromProto(const v1::Prompt& prompt,
                                                     const RequestRules& rules) {
  absl::StatusOr<std::vector<int32_t>> ids = ReadPrompt(prompt, rules);
  if (ids.ok() && ids->empty()) return FieldError("prompt", "is empty, must give at least 1 token");
  return ids;
}

absl::StatusOr<Request> RequestFromProto(const v1::GenerateRequest& request,
                                         const RequestRules& rules) {
  Request to;
  RETURN_IF_ERROR(CheckLabel(request.request_id(), request.model(), rules));
  RETURN_IF_ERROR(TakeSampling(request.sampling(), rules, &to.sampling));
  RETURN_IF_ERROR(TakeStopping(request.stopping(), rules, &to.stop));
  RETURN_IF_ERROR(TakeResponse(request.response(), rules, &to.response));
  if (request.has_cache()) {
    ASSIGN_OR_RETURN(to.cache,
                     LanePolicyFromProto(request.cache(), rules.default_cache, rules.layers));
  }
  to.label = request.request_id();
  // Last: it may take long.
  if (!request.session_id().empty()) {
    RETURN_IF_ERROR(TakeTurn(request, rules, &to));
  } else if (request.has_prefix()) {
    RETURN_IF_ERROR(MarkedPromptFromProto(request, rules, &to));
  } else {
    ASSIGN_OR_RETURN(to.prompt, PromptFromProto(request.prompt(), rules));
  }
  return to;
}

absl::StatusOr<Request> RequestFromProto(const v1::EmbedRequest& request,
                                         const RequestRules& rules) {
  Request to;
  RETURN_IF_ERROR(CheckLabel(request.request_id(), request.model(), rules));
  if (request.has_cache()) {
    ASSIGN_OR_RETURN(to.cache,
                     LanePolicyFromProto(request.cache(), rules.default_cache, rules.layers));
  }
  FieldChecker check("");
  to.embed = {.enabled = true, .layer = rules.layers, .pooling = Pooling::kLast};
  if (request.has_layer()) {
    check.Take("layer", request.layer(), 0u, static_cast<uint32_t>(rules.layers), &to.embed.layer);
  }
  if (request.has_pooling()) {
    if (request.pooling() == v1::POOLING_MEAN) {
      to.embed.pooling = Pooling::kMean;
    } else if (request.pooling() != v1::POOLING_LAST) {
      check.Refuse("pooling", absl::StrCat("got ", static_cast<int>(request.pooling()),
                                           ", must be POOLING_LAST or POOLING_MEAN"));
    }
  }
  RETURN_IF_ERROR(check.status());
  ASSIGN_OR_RETURN(to.prompt, PromptFromProto(request.prompt(), rules));
  to.label = request.request_id();
  to.response.text = false;
  to.response.cache_report = request.cache_report();
  return to;
}

absl::StatusOr<Request> RequestFromProto(const v1::ScoreRequest& request,
                                         const RequestRules& rules) {
  Request to;
  RETURN_IF_ERROR(CheckLabel(request.request_id(), request.model(), rules));
  if (request.has_cache()) {
    ASSIGN_OR_RETURN(to.cache,
                     LanePolicyFromProto(request.cache(), rules.default_cache, rules.layers));
  }
  ASSIGN_OR_RETURN(to.prompt, PromptFromProto(request.prompt(), rules));
  to.label = request.request_id();
  to.response.text = false;
  to.response.cache_report = request.cache_report();
  to.score.enabled = true;
  if (request.has_decode_tail()) {
    FieldChecker check("");
    check.Take("decode_tail", request.decode_tail(), 0u, static_cast<uint32_t>(to.prompt.size()),
               &to.score.decode_tail);
    RETURN_IF_ERROR(check.status());
  }
  return to;
}

}  // namespace keyline
