#include "runtime/text/encode/added_tokens.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

// Start of the character that ends at byte `end`. REQUIRES: end > 0.
size_t CharBefore(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// Letters, digits and underscores of ASCII, and every character beyond it that is no whitespace:
// single_word is for words of an alphabet, and erring here means to find a token less.
bool IsWordChar(std::string_view at) {
  const Utf8Char c = FirstChar(at);
  if (c.code_point < 0x80) return absl::ascii_isalnum(at[0]) || at[0] == '_';
  return !IsWhiteSpace(c.code_point);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::vector<std::pair<std::string_view, int32_t>> any, ordinary;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    any.emplace_back(tokens_[i].text, static_cast<int32_t>(i));
    if (!tokens_[i].special) ordinary.push_back(any.back());
  }
  any_ = PrefixTrie(std::move(any));
  ordinary_ = PrefixTrie(std::move(ordinary));
}

void AddedTokens::Cut(std::string_view text, bool parse_special,
                      std::vector<TextSpan>& spans) const {
  const PrefixTrie& trie = parse_special ? any_ : ordinary_;
  size_t done = 0;  // spans cover the text up to here
  for (size_t at = 0; at < text.size() && !trie.empty();) {
    const auto match = trie.Longest(text.substr(at));
    if (match.length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[match.value];
    size_t begin = at, end = at + match.length;
    at = end;
    if (token.single_word && ((begin > 0 && IsWordChar(text.substr(CharBefore(text, begin)))) ||
                              (end < text.size() && IsWordChar(text.substr(end))))) {
      continue;
    }
    while (token.left_strip && begin > done) {
      const size_t before = CharBefore(text, begin);
      if (!IsWhiteSpace(FirstChar(text.substr(before)).code_point)) break;
      begin = before;
    }
    while (token.right_strip && end < text.size()) {
      const Utf8Char c = FirstChar(text.substr(end));
      if (!IsWhiteSpace(c.code_point)) break;
      end += c.length;
    }
    if (begin > done) spans.push_back({text.substr(done, begin - done), -1});
    spans.push_back({text.substr(begin, end - begin), token.id});
    at = done = end;
  }
  if (done < text.size()) spans.push_back({text.substr(done), -1});
}

}  // namespace keyline
