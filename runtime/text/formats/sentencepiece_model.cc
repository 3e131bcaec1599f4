#include "runtime/text/formats/sentencepiece_model.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"
#include "runtime/text/encode/bpe.h"
#include "runtime/text/encode/unigram.h"
#include "runtime/text/formats/hugging_face/tokenizer_config.h"
#include "runtime/text/formats/sentencepiece.pb.h"
#include "runtime/text/prepare/sentencepiece_normalizer.h"

namespace keyline {
namespace {

using Model = text::SentencePieceModel;

constexpr uint64_t kMaxModelBytes = 64 << 20;

TokenKind KindOf(Model::Piece::Kind kind) {
  switch (kind) {
    case Model::Piece::UNKNOWN:
      return TokenKind::kUnknown;
    case Model::Piece::CONTROL:
      return TokenKind::kControl;
    case Model::Piece::USER_DEFINED:
      return TokenKind::kUserDefined;
    case Model::Piece::UNUSED:
      return TokenKind::kUnused;
    case Model::Piece::BYTE:
      return TokenKind::kByte;
    case Model::Piece::NORMAL:
      return TokenKind::kNormal;
  }
  return TokenKind::kNormal;
}

// Where a text itself is searched for pieces: the user-defined ones.
PrefixTrie UserDefined(const Vocabulary& vocabulary) {
  std::vector<std::pair<std::string_view, int32_t>> entries;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.kind(id) == TokenKind::kUserDefined)
      entries.emplace_back(vocabulary.text(id), id);
  }
  return PrefixTrie(std::move(entries));
}

class Reader {
 public:
  Reader(const std::string& path, const Model& model) : path_(path), model_(model) {}

  absl::StatusOr<TokenizerParts> Read(const TokenizerConfig& config) {
    const auto algorithm = model_.trainer().algorithm();
    if (algorithm != Model::Trainer::UNIGRAM && algorithm != Model::Trainer::BPE) {
      return absl::UnimplementedError(
          absl::StrCat(path_, ": trainer_spec.model_type ", algorithm,
                       " (WORD or CHAR) is not supported; UNIGRAM and BPE are"));
    }
    if (model_.trainer().treat_whitespace_as_suffix()) {
      return absl::UnimplementedError(absl::StrCat(
          path_, ": trainer_spec.treat_whitespace_as_suffix is not supported; prefixes are"));
    }
    RETURN_IF_ERROR(ReadPieces());
    RETURN_IF_ERROR(ReadNormalizer());
    const Vocabulary* vocabulary = parts_.vocabulary.get();
    const bool byte_fallback = model_.trainer().byte_fallback();
    if (algorithm == Model::Trainer::UNIGRAM) {
      parts_.model = std::make_unique<Unigram>(vocabulary, unknown_, byte_fallback);
    } else {
      auto bpe = std::make_unique<Bpe>(
          vocabulary,
          BpeOptions{.by_score = true, .byte_fallback = byte_fallback, .unknown = unknown_});
      bpe->SetWhole(UserDefined(*vocabulary));
      parts_.model = std::move(bpe);
    }
    RETURN_IF_ERROR(ReadAddedTokens(config));

    parts_.bos = Existing(model_.trainer().bos_id());
    if (parts_.bos >= 0) parts_.prefix = {parts_.bos};
    if (config.eos_token.empty() && config.generation_eos.empty()) {
      if (const int32_t eos = Existing(model_.trainer().eos_id()); eos >= 0) parts_.eos = {eos};
    }
    return std::move(parts_);
  }

 private:
  absl::Status ReadPieces() {
    size_t bytes = 0;
    for (const auto& piece : model_.pieces()) bytes += piece.piece().size();
    parts_.vocabulary = std::make_unique<Vocabulary>(Spelling::kMarkedSpaces);
    parts_.vocabulary->Reserve(model_.pieces_size(), bytes);
    for (int32_t id = 0; id < model_.pieces_size(); ++id) {
      const auto& piece = model_.pieces(id);
      const TokenKind kind = KindOf(piece.kind());
      const absl::Status put =
          piece.piece().empty()
              ? absl::InvalidArgumentError(absl::StrCat("piece ", id, " is empty"))
              : parts_.vocabulary->Put(id, piece.piece(), kind, piece.score());
      if (!put.ok()) {
        return absl::Status(put.code(), absl::StrCat(path_, ": pieces: ", put.message()));
      }
      if (kind == TokenKind::kUnknown) unknown_ = id;
    }
    if (unknown_ < 0) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": no piece is of the kind UNKNOWN"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadNormalizer() {
    const auto& spec = model_.normalizer();
    absl::StatusOr<std::unique_ptr<NormalizerStep>> step =
        MakeSentencePieceNormalizer({.charsmap = spec.precompiled_charsmap(),
                                     .add_dummy_prefix = spec.add_dummy_prefix(),
                                     .remove_extra_whitespaces = spec.remove_extra_whitespaces(),
                                     .escape_whitespaces = spec.escape_whitespaces(),
                                     .untouched = UserDefined(*parts_.vocabulary)});
    if (!step.ok()) {
      return absl::Status(step.status().code(),
                          absl::StrCat(path_, ": normalizer_spec.", step.status().message()));
    }
    parts_.normalizer.Add(*std::move(step));
    parts_.strips_leading_space = spec.add_dummy_prefix() || spec.remove_extra_whitespaces();
    return absl::OkStatus();
  }

  // The control pieces, found where special tokens are parsed, and what tokenizer_config.json adds.
  absl::Status ReadAddedTokens(const TokenizerConfig& config) {
    std::vector<AddedToken> added;
    for (int32_t id = 0; id < parts_.vocabulary->size(); ++id) {
      if (parts_.vocabulary->kind(id) != TokenKind::kControl) continue;
      added.push_back(
          {.text = std::string(parts_.vocabulary->text(id)), .id = id, .special = true});
    }
    for (const AddedToken& token : config.added) {
      if (token.id < model_.pieces_size()) continue;  // a piece, repeated there
      RETURN_IF_ERROR(parts_.vocabulary->Put(
          token.id, token.text, token.special ? TokenKind::kControl : TokenKind::kUserDefined));
      added.push_back(token);
    }
    parts_.added = AddedTokens(std::move(added));
    return absl::OkStatus();
  }

  int32_t Existing(int32_t id) const { return parts_.vocabulary->Contains(id) ? id : -1; }

  const std::string& path_;
  const Model& model_;
  TokenizerParts parts_;
  int32_t unknown_ = -1;
};

}  // namespace

absl::StatusOr<TokenizerParts> ReadSentencePieceModel(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / "tokenizer.model").string();
  Model model;
  {
    ASSIGN_OR_RETURN(const std::string bytes, ReadTextFile(path, kMaxModelBytes));
    if (!model.ParseFromString(bytes) || model.pieces_size() == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": not a SentencePiece model (", bytes.size(), " bytes)"));
    }
  }
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  ASSIGN_OR_RETURN(TokenizerParts parts, Reader(path, model).Read(config));
  RETURN_IF_ERROR(ApplyTokenizerConfig(config, directory, parts));
  return parts;
}

}  // namespace keyline
