#include "runtime/text/encode/vocabulary.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/device/status_macros.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

// Far above any real vocabulary; keeps a broken file from asking for gigabytes.
constexpr int32_t kMaxTokens = 1 << 23;
constexpr size_t kMaxArenaBytes = size_t{1} << 31;

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100 on.
struct ByteAlphabet {
  ByteAlphabet() {
    byte_of.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const uint32_t code_point = printable ? byte : next++;
      AppendUtf8(code_point, chars[byte]);
      byte_of[code_point] = static_cast<int>(byte);
    }
  }
  std::array<std::string, 256> chars;
  std::array<int, 0x144> byte_of;  // by code point, -1: not in the alphabet
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet& alphabet = *new ByteAlphabet;
  return alphabet;
}

// The bytes that a byte-level spelling stands for. A text with a character outside the alphabet is
// no such spelling and stands for itself.
std::string FromByteLevel(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = FirstChar(text.substr(at));
    const int byte = c.complete && c.code_point < Alphabet().byte_of.size()
                         ? Alphabet().byte_of[c.code_point]
                         : -1;
    if (byte < 0) return std::string(text);
    bytes.push_back(static_cast<char>(byte));
    at += c.length;
  }
  return bytes;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

int NamedByte(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const int high = HexDigit(text[3]), low = HexDigit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string_view ByteLevelChar(unsigned char byte) { return Alphabet().chars[byte]; }

size_t Vocabulary::Hash::operator()(std::string_view text) const {
  return absl::Hash<absl::string_view>()(absl::string_view(text.data(), text.size()));
}

Vocabulary::Vocabulary(Spelling spelling)
    : spelling_(spelling), index_(0, Hash{this}, Equal{this}), byte_tokens_(256, -1) {}

void Vocabulary::Reserve(int tokens, size_t text_bytes) {
  tokens_.reserve(tokens);
  arena_.reserve(text_bytes + text_bytes / 2);
  index_.reserve(tokens);
}

std::string_view Vocabulary::text(int32_t id) const {
  return {arena_.data() + tokens_[id].text, tokens_[id].text_size};
}

std::string_view Vocabulary::bytes(int32_t id) const {
  return {arena_.data() + tokens_[id].bytes, tokens_[id].bytes_size};
}

int32_t Vocabulary::Find(std::string_view text) const {
  const auto found = index_.find(text);
  return found == index_.end() ? -1 : *found;
}

absl::Status Vocabulary::Put(int32_t id, std::string_view text, TokenKind kind, float score) {
  if (id < 0 || id >= kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id, " is not between 0 and ", kMaxTokens - 1, " (token \"",
                     absl::string_view(text.data(), std::min<size_t>(text.size(), 64)), "\")"));
  }
  if (arena_.size() + text.size() > kMaxArenaBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the vocabulary's texts take more than ", kMaxArenaBytes, " bytes"));
  }
  if (id >= size()) tokens_.resize(id + 1);
  Token& token = tokens_[id];
  if (token.kind != TokenKind::kAbsent) {
    if (this->text(id) != text) {
      const std::string_view old = this->text(id);
      return absl::InvalidArgumentError(absl::StrCat(
          "token id ", id, " is given twice: \"", absl::string_view(old.data(), old.size()),
          "\" and \"", absl::string_view(text.data(), text.size()), "\""));
    }
  } else {
    token.text = static_cast<uint32_t>(arena_.size());
    token.text_size = static_cast<uint32_t>(text.size());
    arena_.insert(arena_.end(), text.begin(), text.end());
    if (!text.empty()) index_.insert(id);
    longest_text_ = std::max(longest_text_, text.size());
  }
  token.kind = kind;
  token.score = score;
  return DeriveBytes(id);
}

void Vocabulary::SetBytes(Token& token, std::string_view bytes) {
  token.bytes_size = static_cast<uint32_t>(bytes.size());
  if (bytes == std::string_view(arena_.data() + token.text, token.text_size)) {
    token.bytes = token.text;
  } else {
    token.bytes = static_cast<uint32_t>(arena_.size());
    arena_.insert(arena_.end(), bytes.begin(), bytes.end());
  }
}

absl::Status Vocabulary::DeriveBytes(int32_t id) {
  Token& token = tokens_[id];
  const std::string_view text = this->text(id);
  if (token.kind == TokenKind::kUnknown || token.kind == TokenKind::kControl) {
    token.bytes_size = 0;
    return absl::OkStatus();
  }
  if (token.kind == TokenKind::kByte) {
    const int byte = NamedByte(text);
    if (byte < 0) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " is a byte, but spelled \"",
                                                     absl::string_view(text.data(), text.size()),
                                                     "\", not \"<0x00>\"..\"<0xFF>\""));
    }
    byte_tokens_[byte] = id;
    const char value = static_cast<char>(byte);
    SetBytes(token, {&value, 1});
    return absl::OkStatus();
  }
  if (spelling_ == Spelling::kByteLevel && token.kind != TokenKind::kUserDefined) {
    const std::string bytes = FromByteLevel(text);
    if (bytes.size() == 1 && ByteLevelChar(bytes[0]) == text) {
      byte_tokens_[static_cast<unsigned char>(bytes[0])] = id;
    }
    SetBytes(token, bytes);
  } else if (spelling_ == Spelling::kMarkedSpaces && text.find(kSpaceMark) != text.npos) {
    std::string bytes;
    for (size_t at = 0; at < text.size();) {
      const bool mark = text.substr(at, kSpaceMark.size()) == kSpaceMark;
      bytes.push_back(mark ? ' ' : text[at]);
      at += mark ? kSpaceMark.size() : 1;
    }
    SetBytes(token, bytes);
  } else {
    SetBytes(token, text);
  }
  return absl::OkStatus();
}

}  // namespace keyline
