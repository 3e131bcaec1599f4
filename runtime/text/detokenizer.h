// Detokenizer: a stream of tokens becomes a stream of whole UTF-8. Bytes of an unfinished character
// are held back until it is complete. One per stream; for one thread at a time.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/text/tokenizer.h"

namespace keyline {

class Detokenizer {
 public:
  // `at_start`: false where the tokens continue a text, so that a leading space stays one.
  explicit Detokenizer(const Tokenizer& tokenizer, bool at_start = true)
      : tokenizer_(&tokenizer), at_start_(at_start) {}
  // Text that this token completes; may be empty. Bytes that are no UTF-8 become U+FFFD. Special
  // tokens have no text.
  std::string Push(int32_t id);
  // What is held back, invalid bytes as U+FFFD; the stream is at its end.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
  bool at_start_;
};

}  // namespace keyline
