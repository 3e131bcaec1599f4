#include "runtime/text/formats/hugging_face/tokenizer_json.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/text/encode/bpe.h"
#include "runtime/text/formats/hugging_face/json_fields.h"
#include "runtime/text/formats/hugging_face/json_pipeline.h"
#include "runtime/text/formats/hugging_face/tokenizer_config.h"
#include "runtime/text/formats/hugging_face/tokenizer_document.h"

namespace keyline {
namespace {

using nlohmann::json;

class Reader {
 public:
  Reader(const std::string& path, const TokenizerDocument& document)
      : path_(path), document_(document), root_(document.rest) {}

  absl::StatusOr<TokenizerParts> Read() {
    JsonSpelling spelling;
    RETURN_IF_ERROR(ReadJsonPipeline(root_, path_, parts_, spelling));
    if (spelling.pre_tokenizer_byte_level != spelling.decoder_byte_level) {
      return absl::UnimplementedError(
          absl::StrCat(path_, ": pre_tokenizer and decoder must both be ByteLevel, or neither"));
    }
    const json* model = FindField(root_, "model");
    const std::string where = absl::StrCat(path_, ": model");
    if (model == nullptr) return absl::InvalidArgumentError(absl::StrCat(where, " is missing"));
    ASSIGN_OR_RETURN(const std::string type, TextFieldOr(*model, "type", "BPE", where));
    if (type != "BPE") {
      return absl::UnimplementedError(
          absl::StrCat(where, ".type \"", type, "\" is not supported; BPE is"));
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      ASSIGN_OR_RETURN(const std::string affix, TextFieldOr(*model, key, "", where));
      if (!affix.empty()) {
        return absl::UnimplementedError(
            absl::StrCat(where, ".", key, " \"", affix, "\" is not supported; none is"));
      }
    }
    parts_.vocabulary =
        std::make_unique<Vocabulary>(spelling.decoder_byte_level     ? Spelling::kByteLevel
                                     : spelling.decoder_marks_spaces ? Spelling::kMarkedSpaces
                                                                     : Spelling::kPlain);
    ASSIGN_OR_RETURN(const bool byte_fallback, FlagFieldOr(*model, "byte_fallback", false, where));
    RETURN_IF_ERROR(ReadVocabulary(byte_fallback));
    RETURN_IF_ERROR(ReadModel(*model, byte_fallback, where));
    RETURN_IF_ERROR(ReadAddedTokens());
    for (const int32_t id : parts_.prefix) {
      if (!parts_.vocabulary->Contains(id)) {
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": post_processor: token id ", id, " is not in the vocabulary"));
      }
    }
    return std::move(parts_);
  }

 private:
  absl::Status ReadVocabulary(bool byte_fallback) {
    const std::string where = absl::StrCat(path_, ": model.vocab");
    if (document_.vocab.empty())
      return absl::InvalidArgumentError(absl::StrCat(where, " is empty"));
    parts_.vocabulary->Reserve(static_cast<int>(document_.vocab.size()), document_.texts->size());
    for (const auto& [text, id] : document_.vocab) {
      const bool byte = byte_fallback && NamedByte(text) >= 0;
      const absl::Status put =
          parts_.vocabulary->Put(id, text, byte ? TokenKind::kByte : TokenKind::kNormal);
      if (!put.ok()) return At(where, put);
    }
    return absl::OkStatus();
  }

  absl::Status ReadModel(const json& model, bool byte_fallback, const std::string& where) {
    BpeOptions options{.byte_fallback = byte_fallback};
    ASSIGN_OR_RETURN(options.fuse_unknown, FlagFieldOr(model, "fuse_unk", false, where));
    ASSIGN_OR_RETURN(options.ignore_merges, FlagFieldOr(model, "ignore_merges", false, where));
    ASSIGN_OR_RETURN(const std::string unknown, TextFieldOr(model, "unk_token", "", where));
    if (!unknown.empty()) {
      options.unknown = parts_.vocabulary->Find(unknown);
      if (options.unknown < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ".unk_token \"", unknown, "\" is not in the vocabulary"));
      }
    }
    auto bpe = std::make_unique<Bpe>(parts_.vocabulary.get(), options);
    bpe->ReserveMerges(document_.merges.size());
    for (const auto& [left, right] : document_.merges) {
      const absl::Status added = bpe->AddMerge(left, right);
      if (!added.ok()) return At(absl::StrCat(where, ".merges"), added);
    }
    parts_.model = std::move(bpe);
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens() {
    const std::string where = absl::StrCat(path_, ": added_tokens");
    ASSIGN_OR_RETURN(const auto list, ListField(root_, "added_tokens", path_));
    std::vector<AddedToken> plain, normalized;
    for (const json* entry : list) {
      AddedToken token;
      ASSIGN_OR_RETURN(token.text, TextField(*entry, "content", where));
      const json* id = FindField(*entry, "id");
      if (id == nullptr) return absl::InvalidArgumentError(absl::StrCat(where, ".id is missing"));
      ASSIGN_OR_RETURN(token.id, ToTokenId(*id, absl::StrCat(where, ".id")));
      ASSIGN_OR_RETURN(token.special, FlagFieldOr(*entry, "special", false, where));
      ASSIGN_OR_RETURN(token.left_strip, FlagFieldOr(*entry, "lstrip", false, where));
      ASSIGN_OR_RETURN(token.right_strip, FlagFieldOr(*entry, "rstrip", false, where));
      ASSIGN_OR_RETURN(token.single_word, FlagFieldOr(*entry, "single_word", false, where));
      ASSIGN_OR_RETURN(const bool normalize,
                       FlagFieldOr(*entry, "normalized", !token.special, where));
      const absl::Status put = parts_.vocabulary->Put(
          token.id, token.text, token.special ? TokenKind::kControl : TokenKind::kUserDefined);
      if (!put.ok()) return At(where, put);
      if (normalize && !parts_.normalizer.empty()) {
        token.text = parts_.normalizer.Apply(token.text, /*at_start=*/true);
        normalized.push_back(std::move(token));
      } else {
        plain.push_back(std::move(token));
      }
    }
    parts_.added = AddedTokens(std::move(plain));
    parts_.added_normalized = AddedTokens(std::move(normalized));
    return absl::OkStatus();
  }

  static absl::Status At(const std::string& where, const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
  }

  const std::string& path_;
  const TokenizerDocument& document_;
  const json& root_;
  TokenizerParts parts_;
};

}  // namespace

absl::StatusOr<TokenizerParts> ReadTokenizerJson(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / "tokenizer.json").string();
  ASSIGN_OR_RETURN(const TokenizerDocument document, ReadTokenizerDocument(path));
  ASSIGN_OR_RETURN(TokenizerParts parts, Reader(path, document).Read());
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  RETURN_IF_ERROR(ApplyTokenizerConfig(config, directory, parts));
  return parts;
}

}  // namespace keyline
