#include "runtime/text/formats/hugging_face/json_pipeline.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/text/formats/expressions.h"
#include "runtime/text/formats/hugging_face/json_fields.h"

namespace keyline {
namespace {

using nlohmann::json;

absl::Status Unsupported(const std::string& where, const std::string& type, const char* supported) {
  return absl::UnimplementedError(
      absl::StrCat(where, " of type \"", type, "\" is not supported; ", supported, " are"));
}

// Calls read(stage, type, where) for the stage under `key`, or for each member of a Sequence in
// turn, to any depth that the parser let pass.
template <typename Read>
absl::Status ForEachStage(const json& stage, const char* members, const std::string& where,
                          Read read) {
  ASSIGN_OR_RETURN(const std::string type, TextField(stage, "type", where));
  if (type != "Sequence") return read(stage, type, where);
  ASSIGN_OR_RETURN(const auto list, ListField(stage, members, where));
  for (size_t i = 0; i < list.size(); ++i) {
    RETURN_IF_ERROR(
        ForEachStage(*list[i], members, absl::StrCat(where, ".", members, "[", i, "]"), read));
  }
  return absl::OkStatus();
}

class Reader {
 public:
  Reader(const std::string& path, TokenizerParts& parts, JsonSpelling& spelling)
      : path_(path), parts_(parts), spelling_(spelling) {}

  absl::Status Read(const json& root) {
    const auto stage = [&](const char* key, const char* members, auto method) -> absl::Status {
      const json* value = FindField(root, key);
      if (value == nullptr) return absl::OkStatus();
      return ForEachStage(*value, members, absl::StrCat(path_, ": ", key),
                          [&](const json& one, const std::string& type, const std::string& where) {
                            return (this->*method)(one, type, where);
                          });
    };
    RETURN_IF_ERROR(stage("normalizer", "normalizers", &Reader::ReadNormalizer));
    RETURN_IF_ERROR(stage("pre_tokenizer", "pretokenizers", &Reader::ReadPreTokenizer));
    RETURN_IF_ERROR(stage("decoder", "decoders", &Reader::ReadDecoder));
    return stage("post_processor", "processors", &Reader::ReadPostProcessor);
  }

 private:
  absl::Status ReadNormalizer(const json& stage, const std::string& type,
                              const std::string& where) {
    if (type == "NFC") {
      parts_.normalizer.Add(MakeNfc());
    } else if (type == "Prepend") {
      ASSIGN_OR_RETURN(std::string prefix, TextField(stage, "prepend", where));
      parts_.normalizer.Add(MakePrepend(std::move(prefix), PrependWhen::kAlways));
    } else if (type == "Replace") {
      ASSIGN_OR_RETURN(std::string from, ReplacedText(stage, where));
      ASSIGN_OR_RETURN(std::string to, TextField(stage, "content", where));
      parts_.normalizer.Add(MakeReplace(std::move(from), std::move(to)));
    } else {
      return Unsupported(where, type, "NFC, Prepend, Replace and Sequence");
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer(const json& stage, const std::string& type,
                                const std::string& where) {
    if (spelling_.pre_tokenizer_byte_level) {
      return absl::UnimplementedError(
          absl::StrCat(where, " (", type, ") follows ByteLevel, which must be the last"));
    }
    const bool first = !std::exchange(split_begun_, true);
    if (type == "ByteLevel") return ReadByteLevel(stage, where, first);
    if (type == "Metaspace") return ReadMetaspace(stage, where, first);
    if (type == "Digits") {
      ASSIGN_OR_RETURN(const bool single, FlagFieldOr(stage, "individual_digits", false, where));
      return AddSplit(single ? R"(\p{N})" : R"(\p{N}+)", where);
    }
    if (type == "Split") return ReadSplit(stage, where);
    return Unsupported(where, type, "ByteLevel, Digits, Metaspace, Split and Sequence");
  }

  absl::Status ReadByteLevel(const json& stage, const std::string& where, bool first) {
    spelling_.pre_tokenizer_byte_level = true;
    ASSIGN_OR_RETURN(const bool prefix, FlagFieldOr(stage, "add_prefix_space", true, where));
    ASSIGN_OR_RETURN(const bool split, FlagFieldOr(stage, "use_regex", true, where));
    if (prefix) {
      if (!first) {
        return absl::UnimplementedError(absl::StrCat(
            where,
            ".add_prefix_space is true after another pre-tokenizer; only false is supported"));
      }
      parts_.lead_in.Add(MakePrepend(" ", PrependWhen::kUnlessPresent));
    }
    return split ? AddSplit(kGpt2Expression, where) : absl::OkStatus();
  }

  absl::Status ReadMetaspace(const json& stage, const std::string& where, bool first) {
    if (!first) {
      return absl::UnimplementedError(
          absl::StrCat(where, ": Metaspace is supported as the first pre-tokenizer only"));
    }
    ASSIGN_OR_RETURN(const std::string mark, TextField(stage, "replacement", where));
    ASSIGN_OR_RETURN(const std::string scheme, PrependScheme(stage, where));
    ASSIGN_OR_RETURN(const bool split, FlagFieldOr(stage, "split", true, where));
    parts_.lead_in.Add(MakeReplace(" ", mark));
    if (scheme != "never") {
      parts_.lead_in.Add(MakePrepend(mark, scheme == "first" ? PrependWhen::kAtStartUnlessPresent
                                                             : PrependWhen::kUnlessPresent));
    }
    if (!split) return absl::OkStatus();
    ASSIGN_OR_RETURN(Expression expression, Expression::Literal(mark));
    parts_.splitter.Add(std::move(expression), SplitBehavior::kMergedWithNext, false);
    return absl::OkStatus();
  }

  // Older files say add_prefix_space instead.
  absl::StatusOr<std::string> PrependScheme(const json& stage, const std::string& where) {
    ASSIGN_OR_RETURN(const bool prefix, FlagFieldOr(stage, "add_prefix_space", true, where));
    ASSIGN_OR_RETURN(std::string scheme,
                     TextFieldOr(stage, "prepend_scheme", prefix ? "always" : "never", where));
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ".prepend_scheme is \"", scheme, "\", not always, first or never"));
    }
    return scheme;
  }

  absl::Status ReadSplit(const json& stage, const std::string& where) {
    static constexpr std::pair<const char*, SplitBehavior> kBehaviors[] = {
        {"Isolated", SplitBehavior::kIsolated},
        {"Removed", SplitBehavior::kRemoved},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous}};
    ASSIGN_OR_RETURN(const std::string name, TextField(stage, "behavior", where));
    ASSIGN_OR_RETURN(const bool invert, FlagFieldOr(stage, "invert", false, where));
    const json* pattern = FindField(stage, "pattern");
    const bool literal = pattern != nullptr && FindField(*pattern, "String") != nullptr;
    ASSIGN_OR_RETURN(const std::string text,
                     TextField(pattern == nullptr ? stage : *pattern, literal ? "String" : "Regex",
                               absl::StrCat(where, ".pattern")));
    for (const auto& [known, behavior] : kBehaviors) {
      if (name != known) continue;
      absl::StatusOr<Expression> expression =
          literal ? Expression::Literal(text) : Expression::Compile(text);
      if (!expression.ok()) return At(where, expression.status());
      parts_.splitter.Add(*std::move(expression), behavior, invert);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(where, ".behavior \"", name, "\" is unknown"));
  }

  absl::Status AddSplit(const char* pattern, const std::string& where) {
    absl::StatusOr<Expression> expression = Expression::Compile(pattern);
    if (!expression.ok()) return At(where, expression.status());
    parts_.splitter.Add(*std::move(expression), SplitBehavior::kIsolated, false);
    return absl::OkStatus();
  }

  absl::Status ReadDecoder(const json& stage, const std::string& type, const std::string& where) {
    if (type == "ByteLevel") {
      spelling_.decoder_byte_level = true;
    } else if (type == "Replace") {
      ASSIGN_OR_RETURN(const std::string from, ReplacedText(stage, where));
      ASSIGN_OR_RETURN(const std::string to, TextField(stage, "content", where));
      if (from != kSpaceMark || to != " ") {
        return absl::UnimplementedError(absl::StrCat(where, " replaces \"", from, "\" by \"", to,
                                                     "\"; supported is U+2581 by a space"));
      }
      spelling_.decoder_marks_spaces = true;
    } else if (type == "Metaspace") {
      ASSIGN_OR_RETURN(const std::string scheme, PrependScheme(stage, where));
      spelling_.decoder_marks_spaces = true;
      parts_.strips_leading_space = scheme != "never";
    } else if (type == "Strip") {
      ASSIGN_OR_RETURN(const std::string content, TextField(stage, "content", where));
      const json* start = FindField(stage, "start");
      const json* stop = FindField(stage, "stop");
      if (content != " " || (start != nullptr && *start != 0 && *start != 1) ||
          (stop != nullptr && *stop != 0)) {
        return absl::UnimplementedError(
            absl::StrCat(where, ": only one leading space can be stripped"));
      }
      parts_.strips_leading_space = start != nullptr && *start == 1;
    } else if (type != "ByteFallback" && type != "Fuse") {
      return Unsupported(where, type,
                         "ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Sequence and Strip");
    }
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor(const json& stage, const std::string& type,
                                 const std::string& where) {
    if (type == "ByteLevel") return absl::OkStatus();  // offsets only
    if (type != "TemplateProcessing") {
      return Unsupported(where, type, "ByteLevel, Sequence and TemplateProcessing");
    }
    ASSIGN_OR_RETURN(const auto single, ListField(stage, "single", where));
    for (const json* part : single) {
      const json* special = FindField(*part, "SpecialToken");
      if (special == nullptr) break;  // the text
      ASSIGN_OR_RETURN(const std::string name, TextField(*special, "id", where));
      const json* tokens = FindField(stage, "special_tokens");
      const json* token = tokens == nullptr ? nullptr : FindField(*tokens, name.c_str());
      const std::string at = absl::StrCat(where, ".special_tokens.", name);
      if (token == nullptr) return absl::InvalidArgumentError(absl::StrCat(at, " is missing"));
      ASSIGN_OR_RETURN(const auto ids, ListField(*token, "ids", at));
      for (const json* id : ids) {
        ASSIGN_OR_RETURN(const int32_t value, ToTokenId(*id, absl::StrCat(at, ".ids")));
        parts_.prefix.push_back(value);
      }
    }
    return absl::OkStatus();
  }

  // What a Replace looks for. Only literal text: tokenizers replace by nothing else.
  absl::StatusOr<std::string> ReplacedText(const json& stage, const std::string& where) {
    const json* pattern = FindField(stage, "pattern");
    const json* text = pattern == nullptr ? nullptr : FindField(*pattern, "String");
    if (text == nullptr || !text->is_string() || text->get_ref<const std::string&>().empty()) {
      return absl::UnimplementedError(
          absl::StrCat(where, ".pattern: only {\"String\": ...} is supported"));
    }
    return text->get_ref<const std::string&>();
  }

  static absl::Status At(const std::string& where, const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
  }

  const std::string& path_;
  TokenizerParts& parts_;
  JsonSpelling& spelling_;
  bool split_begun_ = false;
};

}  // namespace

absl::Status ReadJsonPipeline(const json& root, const std::string& path, TokenizerParts& parts,
                              JsonSpelling& spelling) {
  return Reader(path, parts, spelling).Read(root);
}

}  // namespace keyline
