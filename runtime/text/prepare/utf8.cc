#include "runtime/text/prepare/utf8.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace keyline {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

// Bytes at the front of `text` that are plain ASCII: most text is, so it goes eight at a time.
size_t AsciiPrefix(std::string_view text) {
  size_t at = 0;
  for (uint64_t word = 0; at + 8 <= text.size(); at += 8) {
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (at < text.size() && static_cast<unsigned char>(text[at]) < 0x80) ++at;
  return at;
}

}  // namespace

Utf8Char FirstChar(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1, true};
  // What the second byte may be keeps out overlong forms, surrogates and values past U+10FFFF.
  unsigned char low = 0x80, high = 0xBF;
  int length = 0;
  uint32_t code_point = 0;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
    code_point = first & 0x1Fu;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    code_point = first & 0x0Fu;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    code_point = first & 0x07u;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return {};
  }
  for (int i = 1; i < length; ++i) {
    if (i == static_cast<int>(text.size())) return {0, i, false};
    if (byte(i) < low || byte(i) > high) return {};
    low = 0x80;
    high = 0xBF;
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
  }
  return {code_point, length, true};
}

void AppendUtf8(uint32_t c, std::string& out) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

absl::Status CheckUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    at += AsciiPrefix(text.substr(at));
    if (at == text.size()) break;
    const Utf8Char c = FirstChar(text.substr(at));
    if (!c.complete) {
      return absl::InvalidArgumentError(
          absl::StrCat("text is not UTF-8 at byte offset ", at, " (byte 0x",
                       absl::Hex(static_cast<unsigned char>(text[at]), absl::kZeroPad2), " of ",
                       text.size(), " bytes)"));
    }
    at += c.length;
  }
  return absl::OkStatus();
}

size_t AppendRepaired(std::string_view bytes, bool final, std::string& out) {
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t ascii = AsciiPrefix(bytes.substr(at));
    out.append(bytes.substr(at, ascii));
    at += ascii;
    if (at == bytes.size()) break;
    const Utf8Char c = FirstChar(bytes.substr(at));
    if (c.complete) {
      out.append(bytes.substr(at, c.length));
      at += c.length;
    } else if (c.length > 0) {  // only at the end
      if (!final) return at;
      out.append(kReplacement);
      return bytes.size();
    } else {
      // One mark for the longest beginning of a character that the bytes hold, as browsers do.
      size_t run = 1;
      while (at + run < bytes.size() && run < 3 &&
             FirstChar(bytes.substr(at, run + 1)).length > 0) {
        ++run;
      }
      out.append(kReplacement);
      at += run;
    }
  }
  return at;
}

bool IsWhiteSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace keyline
