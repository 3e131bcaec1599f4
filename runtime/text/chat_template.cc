#include "runtime/text/chat_template.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/device/status_macros.h"
#include "runtime/text/prepare/utf8.h"
#include "runtime/text/tokenizer.h"

namespace keyline {
namespace {

bool Has(std::string_view jinja, std::string_view what) { return jinja.find(what) != jinja.npos; }

// Jinja's trim: whitespace as Python sees it.
std::string_view Trim(std::string_view text) {
  const auto white = [](uint32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty()) {
    const Utf8Char c = FirstChar(text);
    if (!c.complete || !white(c.code_point)) break;
    text.remove_prefix(c.length);
  }
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const Utf8Char c = FirstChar(text.substr(at));
    if (!c.complete || !white(c.code_point)) break;
    text = text.substr(0, at);
  }
  return text;
}

// The string literals inside a template's {{ }} and {% %}, escapes resolved.
std::vector<std::string> Literals(std::string_view jinja) {
  std::vector<std::string> literals;
  bool inside = false;
  for (size_t at = 0; at < jinja.size(); ++at) {
    const char c = jinja[at];
    const char next = at + 1 < jinja.size() ? jinja[at + 1] : '\0';
    if (!inside) {
      inside = c == '{' && (next == '{' || next == '%');
      at += inside;
    } else if ((c == '}' || c == '%') && next == '}') {
      inside = false;
      ++at;
    } else if (c == '\'' || c == '"') {
      std::string literal;
      for (++at; at < jinja.size() && jinja[at] != c; ++at) {
        if (jinja[at] == '\\' && at + 1 < jinja.size()) {
          ++at;
          literal.push_back(jinja[at] == 'n' ? '\n' : jinja[at] == 't' ? '\t' : jinja[at]);
        } else {
          literal.push_back(jinja[at]);
        }
      }
      literals.push_back(std::move(literal));
    }
  }
  return literals;
}

// Builds segments; text that touches text is one segment, since it is tokenized as one.
class Writer {
 public:
  void Special(std::string_view token) { segments_.push_back({std::string(token), true}); }
  void Text(std::string_view text) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().markup) segments_.push_back({"", false});
    segments_.back().text += text;
  }
  std::vector<ChatSegment> Take() { return std::move(segments_); }

 private:
  std::vector<ChatSegment> segments_;
};

// ---- ChatML: <|im_start|>role\ncontent<|im_end|>\n

constexpr std::string_view kImStart = "<|im_start|>", kImEnd = "<|im_end|>";

// The system message that a ChatML template writes by itself where the conversation has none: it
// is the one literal that holds a whole system turn. (Qwen3's template has none.)
std::optional<std::string> DefaultSystem(std::string_view jinja) {
  const std::string begin = absl::StrCat("<|im_start|>", "system\n");
  for (const std::string& literal : Literals(jinja)) {
    if (!absl::StartsWith(literal, begin)) continue;
    const size_t end = literal.find(kImEnd, begin.size());
    if (end != std::string::npos) return literal.substr(begin.size(), end - begin.size());
  }
  return std::nullopt;
}

void WriteImTurn(Writer& out, std::string_view role, std::string_view content) {
  out.Special(kImStart);
  out.Text(role);
  out.Text("\n");
  out.Text(content);
  out.Special(kImEnd);
  out.Text("\n");
}

std::vector<ChatSegment> RenderChatMl(std::string_view jinja,
                                      const std::vector<ChatMessage>& messages) {
  Writer out;
  if (messages.front().role != "system") {
    if (const auto system = DefaultSystem(jinja)) WriteImTurn(out, "system", *system);
  }
  // Templates of thinking models leave out what the assistant thought before the last question.
  const bool drops_thoughts = Has(jinja, "</think>");
  const auto last_user =
      std::find_if(messages.rbegin(), messages.rend(),
                   [](const ChatMessage& message) { return message.role == "user"; });
  const auto questions = static_cast<size_t>(messages.rend() - last_user);  // messages up to it
  for (size_t i = 0; i < messages.size(); ++i) {
    std::string_view content = messages[i].content;
    if (drops_thoughts && messages[i].role == "assistant" && i < questions) {
      constexpr std::string_view kEnd = "</think>";
      if (const size_t end = content.rfind(kEnd); end != content.npos) {
        content.remove_prefix(end + kEnd.size());
        content.remove_prefix(std::min(content.find_first_not_of('\n'), content.size()));
      }
    }
    WriteImTurn(out, messages[i].role, content);
  }
  out.Special(kImStart);
  out.Text("assistant\n");
  return out.Take();
}

// ---- Llama-3: <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>

void WriteHeader(Writer& out, std::string_view role) {
  out.Special("<|start_header_id|>");
  out.Text(role);
  out.Special("<|end_header_id|>");
  out.Text("\n\n");
}

std::vector<ChatSegment> RenderLlama3(std::string_view jinja,
                                      const std::vector<ChatMessage>& messages) {
  Writer out;
  size_t first = 0;
  // From 3.1 on the template always opens with a system turn that tells two dates. "Today" is the
  // template's own fallback, not the clock's: the same request must give the same tokens.
  if (Has(jinja, "Cutting Knowledge Date")) {
    WriteHeader(out, "system");
    out.Text("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (messages.front().role == "system") out.Text(Trim(messages[first++].content));
    out.Special("<|eot_id|>");
  }
  for (size_t i = first; i < messages.size(); ++i) {
    WriteHeader(out, messages[i].role);
    out.Text(Trim(messages[i].content));
    out.Special("<|eot_id|>");
  }
  WriteHeader(out, "assistant");
  return out.Take();
}

// ---- Gemma: <start_of_turn>role\ncontent<end_of_turn>\n, the assistant is "model"

absl::StatusOr<std::vector<ChatSegment>> RenderGemma(std::string_view jinja,
                                                     const std::vector<ChatMessage>& messages) {
  Writer out;
  std::string system;
  size_t first = 0;
  if (messages.front().role == "system") {
    if (Has(jinja, "System role not supported")) {
      return absl::InvalidArgumentError(
          "messages[0].role is \"system\", which this model's chat template does not support; put "
          "it into the first user message");
    }
    system = absl::StrCat(messages.front().content, "\n\n");
    first = 1;
  }
  for (size_t i = first; i < messages.size(); ++i) {
    const bool user = (i - first) % 2 == 0;
    if (messages[i].role != (user ? "user" : "assistant")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "messages[", i, "].role is \"", messages[i].role, "\", but the model's chat ",
          "template wants \"", user ? "user" : "assistant", "\": user and assistant take turns"));
    }
    out.Special("<start_of_turn>");
    out.Text(user ? "user\n" : "model\n");
    if (i == first) out.Text(system);
    out.Text(Trim(messages[i].content));
    out.Special("<end_of_turn>");
    out.Text("\n");
  }
  out.Special("<start_of_turn>");
  out.Text("model\n");
  return out.Take();
}

absl::Status CheckMessages(const std::vector<ChatMessage>& messages) {
  if (messages.empty()) {
    return absl::InvalidArgumentError("messages is empty; a chat needs at least one");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "].role is \"", role, "\", not system, user or assistant"));
    }
  }
  return absl::OkStatus();
}

constexpr std::string_view kEotId = "<|eot_id|>", kEndOfTurn = "<end_of_turn>";

// The token that ends a turn.
std::string_view TurnEnd(ChatFormat format) {
  if (format == ChatFormat::kChatMl) return kImEnd;
  return format == ChatFormat::kLlama3 ? kEotId : kEndOfTurn;
}

absl::StatusOr<std::vector<int32_t>> EncodeSegments(const Tokenizer& tokenizer,
                                                    const std::vector<ChatSegment>& segments) {
  std::vector<int32_t> ids;
  for (const ChatSegment& segment : segments) {
    if (segment.markup) {
      const int32_t id = tokenizer.Find(segment.text);
      if (id < 0) {
        return absl::FailedPreconditionError(absl::StrCat(
            "the model's chat template writes ", segment.text, ", which its vocabulary lacks"));
      }
      ids.push_back(id);
      continue;
    }
    ASSIGN_OR_RETURN(const auto part, tokenizer.Encode(segment.text, {.add_bos = false}));
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

// ChatML templates write BOS or not; the two others always do.
bool WritesBos(const Tokenizer& tokenizer, ChatFormat format) {
  return tokenizer.bos_id() >= 0 &&
         (format != ChatFormat::kChatMl || Has(tokenizer.chat_template(), "bos_token"));
}

// The turns of `messages` behind others, and the beginning of the answer.
absl::Status WriteTurns(Writer& out, ChatFormat format, const std::vector<ChatMessage>& messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (format == ChatFormat::kChatMl) {
      WriteImTurn(out, message.role, message.content);
    } else if (format == ChatFormat::kLlama3) {
      WriteHeader(out, message.role);
      out.Text(Trim(message.content));
      out.Special(kEotId);
    } else {
      const std::string_view role = i % 2 == 0 ? "user" : "assistant";
      if (message.role != role) {
        return absl::InvalidArgumentError(absl::StrCat(
            "messages[", i, "].role is \"", message.role, "\", but behind an answer the model's ",
            "chat template wants \"", absl::string_view(role.data(), role.size()),
            "\": user and assistant take turns"));
      }
      out.Special("<start_of_turn>");
      out.Text(i % 2 == 0 ? "user\n" : "model\n");
      out.Text(Trim(message.content));
      out.Special(kEndOfTurn);
      out.Text("\n");
    }
  }
  switch (format) {
    case ChatFormat::kChatMl:
      out.Special(kImStart);
      out.Text("assistant\n");
      break;
    case ChatFormat::kLlama3:
      WriteHeader(out, "assistant");
      break;
    case ChatFormat::kGemma:
      out.Special("<start_of_turn>");
      out.Text("model\n");
      break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChatFormat> RecognizeChatFormat(std::string_view jinja) {
  if (jinja.empty()) {
    return absl::NotFoundError("the model has no chat template; send a plain prompt instead");
  }
  // <|im_sep|> (Phi-4) and a metadata block (SmolLM3) make other formats of the same tokens.
  const bool other_im = Has(jinja, "<|im_sep|>") || Has(jinja, "## Metadata");
  if (Has(jinja, kImStart) && Has(jinja, kImEnd) && !other_im) return ChatFormat::kChatMl;
  if (Has(jinja, "<|start_header_id|>")) return ChatFormat::kLlama3;
  if (Has(jinja, "<start_of_turn>")) return ChatFormat::kGemma;
  return absl::UnimplementedError(absl::StrCat(
      "the model's chat template is none of the supported ones, which are ChatML ",
      "(<|im_start|>), Llama-3 (<|start_header_id|>) and Gemma (<start_of_turn>); it ",
      "begins with: ", absl::string_view(jinja.data(), std::min<size_t>(jinja.size(), 80))));
}

absl::StatusOr<std::vector<ChatSegment>> RenderChat(ChatFormat format, std::string_view jinja,
                                                    const std::vector<ChatMessage>& messages) {
  RETURN_IF_ERROR(CheckMessages(messages));
  switch (format) {
    case ChatFormat::kChatMl:
      return RenderChatMl(jinja, messages);
    case ChatFormat::kLlama3:
      return RenderLlama3(jinja, messages);
    case ChatFormat::kGemma:
      return RenderGemma(jinja, messages);
  }
  return absl::InternalError("unknown chat format");
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                                const std::vector<ChatMessage>& messages) {
  const std::string& jinja = tokenizer.chat_template();
  ASSIGN_OR_RETURN(const ChatFormat format, RecognizeChatFormat(jinja));
  ASSIGN_OR_RETURN(const auto segments, RenderChat(format, jinja, messages));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodeSegments(tokenizer, segments));
  if (WritesBos(tokenizer, format)) ids.insert(ids.begin(), tokenizer.bos_id());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeSystemMessage(const Tokenizer& tokenizer,
                                                         const std::string& content) {
  const std::string& jinja = tokenizer.chat_template();
  ASSIGN_OR_RETURN(const ChatFormat format, RecognizeChatFormat(jinja));
  if (format == ChatFormat::kGemma) {
    return absl::InvalidArgumentError(
        "this model's chat template has no turn of its own for the system; put its message into "
        "the "
        "first user message");
  }
  // What the whole template writes for it, up to where the assistant would begin.
  ASSIGN_OR_RETURN(auto segments, RenderChat(format, jinja, {{"system", content}}));
  const std::string_view begin =
      format == ChatFormat::kChatMl ? kImStart : std::string_view("<|start_header_id|>");
  while (segments.back().text != begin) segments.pop_back();
  segments.pop_back();
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodeSegments(tokenizer, segments));
  if (WritesBos(tokenizer, format)) ids.insert(ids.begin(), tokenizer.bos_id());
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeChatContinuation(
    const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages, bool after_answer,
    int32_t last_token) {
  const std::string& jinja = tokenizer.chat_template();
  ASSIGN_OR_RETURN(const ChatFormat format, RecognizeChatFormat(jinja));
  RETURN_IF_ERROR(CheckMessages(messages));
  Writer out;
  if (after_answer) {
    const std::string end(TurnEnd(format));
    if (tokenizer.Find(end) != last_token || last_token < 0) out.Special(end);
    if (format != ChatFormat::kLlama3) out.Text("\n");
  }
  RETURN_IF_ERROR(WriteTurns(out, format, messages));
  return EncodeSegments(tokenizer, out.Take());
}

}  // namespace keyline
