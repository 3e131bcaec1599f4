// AssembledTokenizer: the one implementation of Tokenizer, made of parts that a reader in
// runtime/text/formats has put together:
//   added tokens -> normalizer -> added tokens as normalized -> lead-in -> splitter -> piece model
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/text/encode/added_tokens.h"
#include "runtime/text/encode/piece_model.h"
#include "runtime/text/encode/vocabulary.h"
#include "runtime/text/prepare/normalizer.h"
#include "runtime/text/prepare/splitter.h"
#include "runtime/text/tokenizer.h"

namespace keyline {

struct TokenizerParts {
  std::unique_ptr<Vocabulary> vocabulary;
  AddedTokens added;             // found in the text as it is
  Normalizer normalizer;         // of the stretches between them
  AddedTokens added_normalized;  // found in the normalized text; written as normalized themselves
  Normalizer lead_in;            // what the splitter does to a stretch before it splits
  Splitter splitter;
  std::unique_ptr<PieceModel> model;

  std::vector<int32_t> prefix;  // what add_bos puts before a text; empty: none asked for
  int32_t bos = -1;
  std::vector<int32_t> eos;
  std::string chat_template;
  bool strips_leading_space = false;
};

class AssembledTokenizer : public Tokenizer {
 public:
  explicit AssembledTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override;
  std::string_view TokenBytes(int32_t id) const override;
  std::string_view TokenText(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  int32_t Find(std::string_view token) const override { return parts_.vocabulary->Find(token); }
  bool strips_leading_space() const override { return parts_.strips_leading_space; }
  int vocab_size() const override { return parts_.vocabulary->size(); }
  int32_t bos_id() const override { return parts_.bos; }
  std::vector<int32_t> eos_ids() const override { return parts_.eos; }
  const std::string& chat_template() const override { return parts_.chat_template; }

 private:
  absl::Status EncodeStretch(std::string_view text, bool at_start, bool parse_special,
                             std::vector<int32_t>& ids) const;

  const TokenizerParts parts_;
};

}  // namespace keyline
