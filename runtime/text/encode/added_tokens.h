// AddedTokens: tokens that are found in the text as written, before the vocabulary's model sees the
// rest: special ones ("<|im_end|>") and user-defined ones. Immutable once made; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/prepare/normalizer.h"
#include "runtime/text/prepare/prefix_trie.h"

namespace keyline {

struct AddedToken {
  std::string text;
  int32_t id = -1;
  bool special = false;      // found only where special tokens are parsed
  bool left_strip = false;   // takes the whitespace before it along
  bool right_strip = false;  // and behind it
  bool single_word = false;  // only where no letter, digit or underscore touches it
};

// A stretch of text, or one token found in it.
struct TextSpan {
  std::string_view text;
  int32_t token = -1;  // >= 0: the token; `text` is then how it was written
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // Cuts `text` at the tokens, the leftmost and of those the longest first. Appends to `spans`,
  // none empty.
  void Cut(std::string_view text, bool parse_special, std::vector<TextSpan>& spans) const;

 private:
  std::vector<AddedToken> tokens_;
  PrefixTrie any_, ordinary_;  // values: indexes of tokens_
};

}  // namespace keyline
