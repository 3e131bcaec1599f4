// UTF-8: checking, stepping and repairing. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace keyline {

// One decoded character. `length` is 0 where the bytes at hand are not (the start of) a character.
struct Utf8Char {
  uint32_t code_point = 0;
  int length = 0;         // bytes of the character, or of its valid beginning where cut short
  bool complete = false;  // false with length > 0: the text ends inside the character
};

// The character that `text` begins with. Overlong forms, surrogates and values above U+10FFFF are
// not characters. REQUIRES: text is not empty.
Utf8Char FirstChar(std::string_view text);

// Bytes that a character takes, by its first byte. REQUIRES: `first` begins a character.
inline int Utf8Length(unsigned char first) {
  return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

void AppendUtf8(uint32_t code_point, std::string& out);

// INVALID_ARGUMENT names the byte offset of the first byte that is not UTF-8.
absl::Status CheckUtf8(std::string_view text);

// Appends `bytes` to `out`, each maximal invalid run as one U+FFFD. Returns the bytes consumed:
// less than all only where an unfinished character ends them and `final` is false.
size_t AppendRepaired(std::string_view bytes, bool final, std::string& out);

// Unicode's White_Space property, which is what \s means to tokenizers.
bool IsWhiteSpace(uint32_t code_point);

}  // namespace keyline
