#include "runtime/text/formats/end_tokens.h"

#include <algorithm>

namespace keyline {

std::vector<int32_t> EndTokens(const Vocabulary& vocabulary, std::vector<int32_t> named) {
  for (const char* text : {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>",
                           "<|endoftext|>", "<|end_of_text|>", "<|end|>"}) {
    const int32_t id = vocabulary.Find(text);
    if (id < 0 || vocabulary.kind(id) != TokenKind::kControl) continue;
    if (std::find(named.begin(), named.end(), id) == named.end()) named.push_back(id);
  }
  return named;
}

}  // namespace keyline
