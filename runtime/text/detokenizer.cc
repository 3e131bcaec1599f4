#include "runtime/text/detokenizer.h"

#include <utility>

#include "runtime/text/prepare/utf8.h"

namespace keyline {

std::string Detokenizer::Push(int32_t id) {
  std::string_view bytes = tokenizer_->TokenBytes(id);
  if (at_start_ && !bytes.empty()) {
    at_start_ = false;
    if (tokenizer_->strips_leading_space() && bytes[0] == ' ') bytes.remove_prefix(1);
  }
  pending_ += bytes;
  std::string text;
  pending_.erase(0, AppendRepaired(pending_, /*final=*/false, text));
  return text;
}

std::string Detokenizer::Flush() {
  std::string text;
  AppendRepaired(pending_, /*final=*/true, text);
  pending_.clear();
  return text;
}

}  // namespace keyline
