#include "runtime/text/encode/assembled_tokenizer.h"

#include "kernels/device/status_macros.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {

absl::StatusOr<std::vector<int32_t>> AssembledTokenizer::Encode(
    std::string_view text, const EncodeOptions& options) const {
  RETURN_IF_ERROR(CheckUtf8(text));
  std::vector<int32_t> ids;
  if (options.add_bos) ids = parts_.prefix;
  std::vector<TextSpan> spans;
  parts_.added.Cut(text, options.parse_special, spans);
  for (const TextSpan& span : spans) {
    if (span.token >= 0) {
      ids.push_back(span.token);
    } else {
      RETURN_IF_ERROR(
          EncodeStretch(span.text, span.text.data() == text.data(), options.parse_special, ids));
    }
  }
  return ids;
}

absl::Status AssembledTokenizer::EncodeStretch(std::string_view text, bool at_start,
                                               bool parse_special,
                                               std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!parts_.normalizer.empty()) text = normalized = parts_.normalizer.Apply(text, at_start);
  std::vector<TextSpan> spans;
  parts_.added_normalized.Cut(text, parse_special, spans);
  for (const TextSpan& span : spans) {
    if (span.token >= 0) {
      ids.push_back(span.token);
      continue;
    }
    std::string led_in;
    std::string_view stretch = span.text;
    if (!parts_.lead_in.empty()) {
      stretch = led_in = parts_.lead_in.Apply(stretch, at_start && stretch.data() == text.data());
    }
    std::vector<std::string_view> pieces;
    RETURN_IF_ERROR(parts_.splitter.Split(stretch, pieces));
    parts_.model->Encode(pieces, ids);
  }
  return absl::OkStatus();
}

std::string_view AssembledTokenizer::TokenBytes(int32_t id) const {
  return id >= 0 && id < vocab_size() ? parts_.vocabulary->bytes(id) : std::string_view();
}

std::string_view AssembledTokenizer::TokenText(int32_t id) const {
  return id >= 0 && id < vocab_size() ? parts_.vocabulary->text(id) : std::string_view();
}

bool AssembledTokenizer::IsSpecial(int32_t id) const {
  if (!parts_.vocabulary->Contains(id)) return false;
  const TokenKind kind = parts_.vocabulary->kind(id);
  return kind == TokenKind::kControl || kind == TokenKind::kUnknown;
}

}  // namespace keyline
