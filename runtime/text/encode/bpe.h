// Bpe: byte-pair encoding, by ranked merges (GPT-2, Llama-3, tokenizer.json) or by the pieces' own
// scores (SentencePiece). A heap holds the pairs that can merge, so a piece of n characters takes
// n log n, not n^2.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "runtime/text/encode/piece_model.h"
#include "runtime/text/encode/vocabulary.h"
#include "runtime/text/prepare/prefix_trie.h"

namespace keyline {

// What a piece is cut into before merging follows from the vocabulary's spelling: bytes where it
// is byte-level, characters elsewhere.
struct BpeOptions {
  bool by_score = false;       // else by the merges given with AddMerge
  bool byte_fallback = false;  // an uncovered character becomes its bytes' tokens
  bool fuse_unknown = true;    // consecutive uncovered characters become one unknown token
  bool ignore_merges = false;  // a whole piece that is a token becomes it, merges or not
  int32_t unknown = -1;        // -1: what has no token at all is left out
};

class Bpe : public PieceModel {
 public:
  // REQUIRES: `vocabulary` is complete but for tokens that the text is searched for beforehand, and
  // outlives this.
  Bpe(const Vocabulary* vocabulary, const BpeOptions& options);

  void ReserveMerges(size_t merges) { merges_.reserve(merges); }
  // Merges in order of rank; of two alike the first counts. INVALID_ARGUMENT where a part or the
  // whole is not in the vocabulary.
  absl::Status AddMerge(std::string_view left, std::string_view right);

  // Pieces that stay whole and merge with nothing (SentencePiece's user-defined ones).
  void SetWhole(PrefixTrie whole) { whole_ = std::move(whole); }

  void Encode(std::span<const std::string_view> pieces, std::vector<int32_t>& ids) const override;

 private:
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1: none
    uint32_t begin, size;    // bytes of the piece; size 0: merged away
    bool whole;
  };
  struct Pair {
    float priority;  // the greatest merges first; of equals the leftmost
    int32_t left;
    uint32_t size;  // of both: outdated where it is not so any more
    int32_t id;
  };
  struct Merge {
    int32_t rank, id;
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Pair> heap;
    // How pairs that formed a kUnused token were cut: begin << 32 | size -> size of the left part.
    absl::flat_hash_map<uint64_t, uint32_t> unused_cuts;
  };

  bool MayCutBefore(std::string_view piece, size_t mark) const;
  void EncodePiece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  void Cut(std::string_view piece, std::vector<Symbol>& symbols) const;
  void PushPair(std::string_view piece, int32_t left, Scratch& scratch) const;
  void Emit(std::string_view piece, const Symbol& symbol, const Scratch& scratch,
            std::vector<int32_t>& ids) const;

  const Vocabulary* vocabulary_;
  BpeOptions options_;
  PrefixTrie whole_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by left id << 32 | right id
  std::vector<int32_t> ascii_;                   // ids of one-byte characters
  // Where a vocabulary's pieces have a space mark inside, the characters before it; see Encode.
  absl::flat_hash_set<uint32_t> before_mark_;
  bool has_mark_ = false;  // the mark is a token: texts can be cut before one
};

}  // namespace keyline
