// Tokenizer: text to token ids and back, as the model's own files say.
//
// Reads tokenizer.json (byte-level BPE, BPE with byte fallback), tokenizer.model (SentencePiece
// unigram and BPE) and GGUF vocabularies. Thread: any; immutable once loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

class GgufFile;

struct EncodeOptions {
  bool add_bos = true;         // only where the model's vocabulary asks for one
  bool parse_special = false;  // special tokens written in the text become their ids
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // INVALID_ARGUMENT names the byte offset where `text` is not UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      const EncodeOptions& options) const = 0;
  // The bytes that a token stands for; special tokens give "". Any id is allowed; unknown ones give
  // "". A token's bytes need not be whole UTF-8: see detokenizer.h.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  // As the vocabulary spells it, special tokens included: for people.
  virtual std::string_view TokenText(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // Id of a token spelled so in the vocabulary, or -1.
  virtual int32_t Find(std::string_view token) const = 0;
  // SentencePiece vocabularies mark a word's start with a space that the text's first word lacks:
  // true where the first decoded token of a text drops its leading space.
  virtual bool strips_leading_space() const = 0;

  virtual int vocab_size() const = 0;
  virtual int32_t bos_id() const = 0;  // -1: none
  virtual std::vector<int32_t> eos_ids() const = 0;
  // The model's own chat template (Jinja), or "".
  virtual const std::string& chat_template() const = 0;
};

// `path`: a model directory or one .gguf file.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

// Whole text of a token sequence; invalid UTF-8 becomes U+FFFD. Special tokens are written out when
// `keep_special`.
std::string Decode(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                   bool keep_special = false);

}  // namespace keyline
