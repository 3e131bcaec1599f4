// Detokenizer: a stream of tokens becomes a stream of whole UTF-8. Bytes of an unfinished character
// are held back until it is complete.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/text/tokenizer.h"

namespace keyline {

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  // Text that this token completes; may be empty.
  std::string Push(int32_t id);
  // What is held back, invalid bytes as U+FFFD; the stream is at its end.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
  bool at_start_ = true;
};

}  // namespace keyline
