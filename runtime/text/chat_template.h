// Chat templates that keyline renders itself (ChatML, Llama-3, Gemma), recognised from the model's
// own template. A model's Jinja is never executed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

enum class ChatFormat { kChatMl, kLlama3, kGemma };

// UNIMPLEMENTED, with what is supported, for a template of another kind; NOT_FOUND for "".
absl::StatusOr<ChatFormat> RecognizeChatFormat(std::string_view jinja);

// A rendered conversation, without BOS, as segments: markup (one special token each) and text,
// which is never parsed: content that looks like a special token stays text. Text of the
// template and content that touch are one segment: tokens may span both, as in the model's
// training.
struct ChatSegment {
  std::string text;
  bool markup = false;
};

// The conversation, ending where the assistant's answer begins. `jinja` supplies the model's
// default system message where it has one. INVALID_ARGUMENT for unknown roles, an empty
// conversation, or roles in an order that the format cannot write.
absl::StatusOr<std::vector<ChatSegment>> RenderChat(ChatFormat format, std::string_view jinja,
                                                    const std::vector<ChatMessage>& messages);

class Tokenizer;
// Recognise, render and encode in one go. BOS as the format demands, once. FAILED_PRECONDITION
// where the vocabulary lacks a token of the format.
absl::StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                const std::vector<ChatMessage>& messages);

// ---- A conversation that is kept between requests
// -------------------------------------------------

// How every conversation with this system message begins: EncodeChat's first tokens for it.
// INVALID_ARGUMENT where the format has no turn of its own for the system.
absl::StatusOr<std::vector<int32_t>> EncodeSystemMessage(const Tokenizer& tokenizer,
                                                         const std::string& content);

// What `messages` add to a conversation that is in the cache already, up to where the assistant's
// next answer begins. `after_answer`: the assistant spoke last; its turn is ended first, unless
// `last_token`, the conversation's last one, has done so. What the cache holds stays as it was,
// also where the model's own template would leave out earlier thoughts. Errors as EncodeChat.
absl::StatusOr<std::vector<int32_t>> EncodeChatContinuation(
    const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages, bool after_answer,
    int32_t last_token);

}  // namespace keyline
