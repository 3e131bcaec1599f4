#include "runtime/text/tokenizer.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/gguf/gguf.h"
#include "runtime/text/encode/assembled_tokenizer.h"
#include "runtime/text/formats/gguf_vocabulary.h"
#include "runtime/text/formats/hugging_face/tokenizer_json.h"
#include "runtime/text/formats/sentencepiece_model.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

absl::StatusOr<TokenizerParts> ReadParts(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
    return ReadGgufVocabulary(*file);
  }
  const std::filesystem::path directory(path);
  // The one with the pre-tokenizer and special tokens first: tokenizer.model has neither.
  if (std::filesystem::exists(directory / "tokenizer.json", error)) return ReadTokenizerJson(path);
  if (std::filesystem::exists(directory / "tokenizer.model", error)) {
    return ReadSentencePieceModel(path);
  }
  return absl::NotFoundError(
      absl::StrCat(path, ": neither tokenizer.json nor tokenizer.model is there"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  ASSIGN_OR_RETURN(TokenizerParts parts, ReadParts(path));
  return std::make_unique<AssembledTokenizer>(std::move(parts));
}

std::string Decode(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool keep_special) {
  std::string bytes;
  bool at_start = tokenizer.strips_leading_space();
  for (const int32_t id : ids) {
    if (keep_special && tokenizer.IsSpecial(id)) {
      bytes += tokenizer.TokenText(id);
      continue;
    }
    std::string_view token = tokenizer.TokenBytes(id);
    if (at_start && !token.empty()) {
      at_start = false;
      if (token[0] == ' ') token.remove_prefix(1);
    }
    bytes += token;
  }
  std::string text;
  AppendRepaired(bytes, /*final=*/true, text);
  return text;
}

}  // namespace keyline
