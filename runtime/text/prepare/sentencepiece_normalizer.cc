#include "runtime/text/prepare/sentencepiece_normalizer.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581

// The compiled table: a uint32 with the bytes of a double-array trie, the trie (units of 32 bits,
// Darts-clone's layout, little endian), then NUL-terminated replacements that its values point at.
class Charsmap {
 public:
  static absl::StatusOr<Charsmap> Parse(std::string_view blob) {
    Charsmap map;
    if (blob.empty()) return map;
    const size_t trie_bytes = blob.size() < 4 ? 0 : Word(blob, 0);
    if (blob.size() < 4 || trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > blob.size() - 4 ||
        blob.back() != '\0') {
      return absl::InvalidArgumentError(absl::StrCat("precompiled_charsmap: ", blob.size(),
                                                     " bytes do not hold a trie of ", trie_bytes,
                                                     " bytes and terminated strings"));
    }
    for (size_t at = 4; at < 4 + trie_bytes; at += 4) map.units_.push_back(Word(blob, at));
    map.replacements_ = std::string(blob.substr(4 + trie_bytes));
    if (map.replacements_.empty()) {
      return absl::InvalidArgumentError("precompiled_charsmap: no replacements behind the trie");
    }
    return map;
  }

  struct Match {
    size_t length = 0;  // bytes of the text; 0: none
    std::string_view replacement;
  };
  // The longest entry that `text` begins with. A broken trie matches nothing more.
  Match Longest(std::string_view text) const {
    Match match;
    if (units_.empty()) return match;
    size_t node = Offset(units_[0]);
    for (size_t i = 0; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      node ^= byte;
      if (node >= units_.size()) break;
      const uint32_t unit = units_[node];
      if ((unit & (0x80000000u | 0xFFu)) != byte) break;  // another label, or a value
      node ^= Offset(unit);
      if ((unit >> 8 & 1) == 0) continue;  // no entry ends here
      if (node >= units_.size()) break;
      const size_t value = units_[node] & 0x7FFFFFFFu;
      if (value >= replacements_.size()) break;
      match.length = i + 1;
      match.replacement = replacements_.c_str() + value;
    }
    return match;
  }

 private:
  static uint32_t Word(std::string_view blob, size_t at) {
    uint32_t word = 0;
    for (int i = 3; i >= 0; --i) word = word << 8 | static_cast<unsigned char>(blob[at + i]);
    return word;
  }
  static size_t Offset(uint32_t unit) { return size_t{unit >> 10} << ((unit & 0x200u) >> 6); }

  std::vector<uint32_t> units_;
  std::string replacements_;
};

class SentencePieceNormalizer : public NormalizerStep {
 public:
  SentencePieceNormalizer(SentencePieceRules rules, Charsmap charsmap)
      : rules_(std::move(rules)), charsmap_(std::move(charsmap)) {}

  void Apply(std::string& text, bool /*at_start*/) const override {
    const std::string_view space = rules_.escape_whitespaces ? kMark : std::string_view(" ");
    const bool squeeze = rules_.remove_extra_whitespaces;
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    bool begun = false;
    bool after_space = squeeze;  // as if a space stood before the text: leading ones go
    for (size_t at = 0; at < text.size();) {
      auto [mapped, length] = MapFront(std::string_view(text).substr(at));
      at += length;
      while (after_space && !mapped.empty() && mapped[0] == ' ') mapped.remove_prefix(1);
      if (mapped.empty()) continue;
      if (!begun && rules_.add_dummy_prefix) out += space;
      begun = true;
      for (const char c : mapped) {
        if (c == ' ') {
          out += space;
        } else {
          out.push_back(c);
        }
      }
      after_space = squeeze && mapped.back() == ' ';
    }
    if (squeeze) {
      while (out.size() >= space.size() &&
             std::string_view(out).substr(out.size() - space.size()) == space) {
        out.resize(out.size() - space.size());
      }
    }
    text = std::move(out);
  }

 private:
  // What the front of `text` becomes, and how many of its bytes that takes.
  std::pair<std::string_view, size_t> MapFront(std::string_view text) const {
    if (const auto piece = rules_.untouched.Longest(text); piece.length > 0) {
      return {text.substr(0, piece.length), piece.length};
    }
    if (const auto match = charsmap_.Longest(text); match.length > 0) {
      return {match.replacement, match.length};
    }
    const size_t length = Utf8Length(static_cast<unsigned char>(text[0]));
    return {text.substr(0, length), length};
  }

  const SentencePieceRules rules_;
  const Charsmap charsmap_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NormalizerStep>> MakeSentencePieceNormalizer(
    SentencePieceRules rules) {
  ASSIGN_OR_RETURN(Charsmap charsmap, Charsmap::Parse(rules.charsmap));
  rules.charsmap.clear();
  return std::make_unique<SentencePieceNormalizer>(std::move(rules), std::move(charsmap));
}

}  // namespace keyline
