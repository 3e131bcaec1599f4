// Vocabulary: ids and what they are spelled like, what bytes they stand for and of which kind they
// are. Filled by the readers in runtime/text/formats, immutable afterwards; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"

namespace keyline {

enum class TokenKind : uint8_t {
  kAbsent,       // no token has this id
  kNormal,       // found by the model (merges, Viterbi)
  kUnknown,      // stands for what the vocabulary cannot write
  kControl,      // special: only markup produces it
  kUserDefined,  // found in the text before the model sees it
  kUnused,       // may be an intermediate of a merge, never a result
  kByte,         // "<0x0A>": one byte, for what no other token covers
};

// How the vocabulary spells bytes.
enum class Spelling {
  kPlain,         // as they are
  kByteLevel,     // each byte as one printable character (GPT-2)
  kMarkedSpaces,  // a space as U+2581 (SentencePiece)
};

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

class Vocabulary {
 public:
  explicit Vocabulary(Spelling spelling);
  Vocabulary(const Vocabulary&) = delete;  // its index points into it
  Vocabulary& operator=(const Vocabulary&) = delete;

  void Reserve(int tokens, size_t text_bytes);
  // Adds a token, or changes the kind of one that is there with the same text. Ids may leave gaps.
  // Of two ids with one text the first is found. INVALID_ARGUMENT: an id below 0 or beyond a limit,
  // an id that has another text, a kByte that is not spelled "<0x..>".
  absl::Status Put(int32_t id, std::string_view text, TokenKind kind, float score = 0);

  int size() const { return static_cast<int>(tokens_.size()); }  // greatest id + 1
  int32_t Find(std::string_view text) const;                     // -1: none
  bool Contains(int32_t id) const {
    return id >= 0 && id < size() && kind(id) != TokenKind::kAbsent;
  }

  // REQUIRES for these: 0 <= id < size().
  std::string_view text(int32_t id) const;
  std::string_view bytes(int32_t id) const;  // "" for unknown, control and absent ones
  TokenKind kind(int32_t id) const { return tokens_[id].kind; }
  float score(int32_t id) const { return tokens_[id].score; }

  // Id of the token for one byte: of the byte-level alphabet or "<0x..>"; -1: none.
  int32_t byte_token(unsigned char byte) const { return byte_tokens_[byte]; }
  size_t longest_text() const { return longest_text_; }
  Spelling spelling() const { return spelling_; }

 private:
  struct Token {
    uint32_t text = 0, text_size = 0;    // in arena_
    uint32_t bytes = 0, bytes_size = 0;  // in arena_; shares the text's where they are the same
    float score = 0;
    TokenKind kind = TokenKind::kAbsent;
  };
  // The index holds ids and hashes their texts: a third of what a map of views would take.
  struct Hash {
    using is_transparent = void;
    const Vocabulary* vocabulary;
    size_t operator()(std::string_view text) const;
    size_t operator()(int32_t id) const { return (*this)(vocabulary->text(id)); }
  };
  struct Equal {
    using is_transparent = void;
    const Vocabulary* vocabulary;
    std::string_view View(int32_t id) const { return vocabulary->text(id); }
    std::string_view View(std::string_view text) const { return text; }
    template <typename A, typename B>
    bool operator()(A a, B b) const {
      return View(a) == View(b);
    }
  };

  void SetBytes(Token& token, std::string_view bytes);
  absl::Status DeriveBytes(int32_t id);

  Spelling spelling_;
  std::vector<char> arena_;
  std::vector<Token> tokens_;
  absl::flat_hash_set<int32_t, Hash, Equal> index_;
  std::vector<int32_t> byte_tokens_;
  size_t longest_text_ = 0;
};

// The byte that "<0x0A>" names, or -1.
int NamedByte(std::string_view text);

// The character that byte-level vocabularies write a byte as, in UTF-8.
std::string_view ByteLevelChar(unsigned char byte);

}  // namespace keyline
