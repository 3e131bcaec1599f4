// ByteTokenizer: every byte is a token; 256 is BOS and 257, "<end>", ends a text.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/text/tokenizer.h"

namespace keyline::testing {

class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(std::string chat_template = "") : template_(std::move(chat_template)) {
    for (int i = 0; i < 256; ++i) bytes_.push_back(std::string(1, static_cast<char>(i)));
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_bos) ids.push_back(256);
    for (size_t i = 0; i < text.size(); ++i) {
      if (static_cast<unsigned char>(text[i]) == 0xFF) {
        return absl::InvalidArgumentError(absl::StrCat("not UTF-8 at byte ", i));
      }
      if (options.parse_special && text.substr(i, 5) == "<end>") {
        ids.push_back(257);
        i += 4;
      } else {
        ids.push_back(static_cast<unsigned char>(text[i]));
      }
    }
    return ids;
  }
  std::string_view TokenBytes(int32_t id) const override {
    return id >= 0 && id < 256 ? std::string_view(bytes_[id]) : std::string_view();
  }
  std::string_view TokenText(int32_t id) const override {
    if (id == 256) return "<bos>";
    return id == 257 ? "<end>" : TokenBytes(id);
  }
  bool IsSpecial(int32_t id) const override { return id >= 256; }
  int32_t Find(std::string_view token) const override {
    if (token == "<end>") return 257;
    return token.size() == 1 ? static_cast<unsigned char>(token[0]) : -1;
  }
  bool strips_leading_space() const override { return false; }
  int vocab_size() const override { return 258; }
  int32_t bos_id() const override { return 256; }
  std::vector<int32_t> eos_ids() const override { return {257}; }
  const std::string& chat_template() const override { return template_; }

 private:
  std::vector<std::string> bytes_;
  std::string template_;
};

}  // namespace keyline::testing
