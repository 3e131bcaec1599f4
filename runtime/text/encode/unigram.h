// Unigram: the most probable cut of a text into pieces, by dynamic programming over its bytes
// (Viterbi; Kudo 2018, "Subword Regularization", section 3.1). Time is the text's length times the
// length of the longest piece that fits.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/text/encode/piece_model.h"
#include "runtime/text/encode/vocabulary.h"
#include "runtime/text/prepare/prefix_trie.h"

namespace keyline {

class Unigram : public PieceModel {
 public:
  // REQUIRES: `vocabulary` is complete and outlives this. `unknown` >= 0 becomes what no piece
  // covers (its bytes' tokens where `byte_fallback`).
  Unigram(const Vocabulary* vocabulary, int32_t unknown, bool byte_fallback);

  void Encode(std::span<const std::string_view> pieces, std::vector<int32_t>& ids) const override;

 private:
  void EncodePiece(std::string_view piece, std::vector<int32_t>& ids) const;

  const Vocabulary* vocabulary_;
  int32_t unknown_;
  bool byte_fallback_;
  PrefixTrie pieces_;
  float best_score_ = 0;     // of a piece
  float unknown_score_ = 0;  // per uncovered character
};

}  // namespace keyline
