// PieceModel: prepared text to token ids. BPE and unigram are its kinds; the tokenizer around it
// (assembled_tokenizer.h) has already found special tokens, normalized and split.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace keyline {

class PieceModel {
 public:
  virtual ~PieceModel() = default;
  // Appends the ids of each piece in turn; a token never spans two pieces. Time is at most
  // n log n in a piece's length, whatever it says. Thread: any. REQUIRES: the pieces are UTF-8.
  virtual void Encode(std::span<const std::string_view> pieces,
                      std::vector<int32_t>& ids) const = 0;
};

}  // namespace keyline
