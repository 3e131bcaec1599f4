#include "runtime/text/formats/gguf_vocabulary.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/quoted.h"
#include "runtime/text/encode/bpe.h"
#include "runtime/text/formats/end_tokens.h"
#include "runtime/text/formats/expressions.h"

namespace keyline {
namespace {

constexpr char kModel[] = "tokenizer.ggml.model";
constexpr char kPre[] = "tokenizer.ggml.pre";
constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTypes[] = "tokenizer.ggml.token_type";
constexpr char kScores[] = "tokenizer.ggml.scores";
constexpr char kMerges[] = "tokenizer.ggml.merges";

class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file) {}

  absl::StatusOr<TokenizerParts> Read() {
    ASSIGN_OR_RETURN(const std::string_view model, file_.String(kModel));
    if (model != "gpt2" && model != "llama") {
      return absl::UnimplementedError(absl::StrCat(file_.path(), ": ", kModel, " ", Quoted(model),
                                                   " is not supported; gpt2 and llama are"));
    }
    const bool byte_level = model == "gpt2";
    RETURN_IF_ERROR(ReadTokens(byte_level ? Spelling::kByteLevel : Spelling::kMarkedSpaces));
    if (byte_level) {
      RETURN_IF_ERROR(ReadByteLevel());
    } else {
      RETURN_IF_ERROR(ReadSentencePiece());
    }
    RETURN_IF_ERROR(ReadSpecialIds(byte_level));
    if (file_.Has("tokenizer.chat_template")) {
      ASSIGN_OR_RETURN(const std::string_view text, file_.String("tokenizer.chat_template"));
      parts_.chat_template = std::string(text);
    }
    return std::move(parts_);
  }

 private:
  absl::Status ReadTokens(Spelling spelling) {
    ASSIGN_OR_RETURN(const auto tokens, file_.Strings(kTokens));
    std::vector<int64_t> types;
    std::vector<float> scores;
    if (file_.Has(kTypes)) {
      ASSIGN_OR_RETURN(types, file_.Integers(kTypes));
      RETURN_IF_ERROR(CheckSize(kTypes, types.size(), tokens.size()));
    }
    if (file_.Has(kScores)) {
      ASSIGN_OR_RETURN(scores, file_.Numbers(kScores));
      RETURN_IF_ERROR(CheckSize(kScores, scores.size(), tokens.size()));
    }
    size_t bytes = 0;
    for (const std::string_view token : tokens) bytes += token.size();
    parts_.vocabulary = std::make_unique<Vocabulary>(spelling);
    parts_.vocabulary->Reserve(static_cast<int>(tokens.size()), bytes);
    std::vector<AddedToken> added;
    for (size_t id = 0; id < tokens.size(); ++id) {
      ASSIGN_OR_RETURN(const TokenKind kind, Kind(id, types.empty() ? 1 : types[id]));
      absl::Status put = parts_.vocabulary->Put(static_cast<int32_t>(id), tokens[id], kind,
                                                scores.empty() ? 0 : scores[id]);
      if (!put.ok()) return Failed(kTokens, put);
      if (kind == TokenKind::kControl || kind == TokenKind::kUnknown ||
          kind == TokenKind::kUserDefined) {
        added.push_back({.text = std::string(tokens[id]),
                         .id = static_cast<int32_t>(id),
                         .special = kind != TokenKind::kUserDefined});
      }
    }
    parts_.added = AddedTokens(std::move(added));
    return absl::OkStatus();
  }

  absl::StatusOr<TokenKind> Kind(size_t id, int64_t type) const {
    constexpr TokenKind kKinds[] = {
        TokenKind::kNormal,      TokenKind::kNormal, TokenKind::kUnknown, TokenKind::kControl,
        TokenKind::kUserDefined, TokenKind::kUnused, TokenKind::kByte};
    if (type < 0 || type > 6) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": ", kTypes, "[", id, "] is ", type, ", not 0 to 6"));
    }
    return kKinds[type];
  }

  absl::Status ReadByteLevel() {
    std::string_view pre;
    if (file_.Has(kPre)) {
      ASSIGN_OR_RETURN(pre, file_.String(kPre));
    }
    absl::StatusOr<NamedSplit> split = FindNamedSplit(pre);
    if (!split.ok()) return Failed(kPre, split.status());
    add_bos_ = split->add_bos;
    for (const std::string& pattern : split->expressions) {
      ASSIGN_OR_RETURN(Expression expression, Expression::Compile(pattern));
      parts_.splitter.Add(std::move(expression), SplitBehavior::kIsolated, /*invert=*/false);
    }

    auto bpe = std::make_unique<Bpe>(parts_.vocabulary.get(),
                                     BpeOptions{.ignore_merges = split->ignore_merges});
    ASSIGN_OR_RETURN(const auto merges, file_.Strings(kMerges));
    bpe->ReserveMerges(merges.size());
    for (const std::string_view merge : merges) {
      const size_t space = merge.find(' ', 1);
      absl::Status status =
          space == merge.npos
              ? absl::InvalidArgumentError(absl::StrCat(Quoted(merge), " is no pair of tokens"))
              : bpe->AddMerge(merge.substr(0, space), merge.substr(space + 1));
      if (!status.ok()) return Failed(kMerges, status);
    }
    parts_.model = std::move(bpe);
    return absl::OkStatus();
  }

  absl::Status ReadSentencePiece() {
    if (!file_.Has(kScores)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": ", kScores, " is missing; ", kModel, " llama needs it"));
    }
    add_bos_ = true;
    bool space_prefix = true;
    RETURN_IF_ERROR(ReadFlag("tokenizer.ggml.add_space_prefix", space_prefix));
    if (space_prefix) parts_.normalizer.Add(MakePrepend(" ", PrependWhen::kAlways));
    parts_.normalizer.Add(MakeReplace(" ", std::string(kSpaceMark)));
    parts_.strips_leading_space = space_prefix;
    int64_t unknown = 0;
    RETURN_IF_ERROR(ReadId("tokenizer.ggml.unknown_token_id", unknown));
    parts_.model = std::make_unique<Bpe>(
        parts_.vocabulary.get(),
        BpeOptions{
            .by_score = true, .byte_fallback = true, .unknown = static_cast<int32_t>(unknown)});
    return absl::OkStatus();
  }

  absl::Status ReadSpecialIds(bool byte_level) {
    // The llama vocabulary's own defaults, where the file is silent.
    int64_t bos = byte_level ? -1 : 1, eos = byte_level ? -1 : 2, end_of_turn = -1;
    RETURN_IF_ERROR(ReadId("tokenizer.ggml.bos_token_id", bos));
    RETURN_IF_ERROR(ReadId("tokenizer.ggml.eos_token_id", eos));
    RETURN_IF_ERROR(ReadId("tokenizer.ggml.eot_token_id", end_of_turn));
    RETURN_IF_ERROR(ReadFlag("tokenizer.ggml.add_bos_token", add_bos_));
    parts_.bos = static_cast<int32_t>(bos);
    if (add_bos_ && bos >= 0) parts_.prefix = {parts_.bos};
    std::vector<int32_t> ends;
    for (const int64_t id : {eos, end_of_turn}) {
      if (id >= 0) ends.push_back(static_cast<int32_t>(id));
    }
    parts_.eos = EndTokens(*parts_.vocabulary, std::move(ends));
    return absl::OkStatus();
  }

  absl::Status ReadFlag(const char* key, bool& value) const {
    if (!file_.Has(key)) return absl::OkStatus();
    ASSIGN_OR_RETURN(value, file_.Boolean(key));
    return absl::OkStatus();
  }

  // Leaves `value` as it is where the file has no such key; -1 where the default is no token.
  absl::Status ReadId(const char* key, int64_t& value) const {
    const int size = parts_.vocabulary->size();
    if (!file_.Has(key)) {
      if (value >= size) value = -1;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(value, file_.Integer(key));
    if (value >= 0 && value < size) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": ", key, " ", value, " is not a token; there are ", size));
  }

  absl::Status CheckSize(const char* key, size_t got, size_t wanted) const {
    if (got == wanted) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": ", key, " has ", got,
                                                   " elements, ", kTokens, " has ", wanted));
  }

  absl::Status Failed(const char* key, const absl::Status& status) const {
    return absl::Status(status.code(),
                        absl::StrCat(file_.path(), ": ", key, ": ", status.message()));
  }

  const GgufFile& file_;
  TokenizerParts parts_;
  bool add_bos_ = false;
};

}  // namespace

absl::StatusOr<TokenizerParts> ReadGgufVocabulary(const GgufFile& file) {
  return Reader(file).Read();
}

}  // namespace keyline
