#include "runtime/text/formats/hugging_face/tokenizer_config.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"
#include "runtime/files/json_file.h"
#include "runtime/text/formats/end_tokens.h"
#include "runtime/text/formats/hugging_face/json_fields.h"

namespace keyline {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxTemplateBytes = 1 << 20;

// Null where there is no such file.
absl::StatusOr<json> ReadOptional(const std::string& path, const JsonLimits& limits) {
  absl::StatusOr<json> read = ReadJsonFile(path, limits);
  if (absl::IsNotFound(read.status())) return json();
  return read;
}

// A token is written as its text, or as an object with its text as "content".
absl::StatusOr<std::string> TokenField(const json& config, const char* key,
                                       const std::string& where) {
  const json* value = FindField(config, key);
  if (value != nullptr && value->is_object()) {
    return TextField(*value, "content", absl::StrCat(where, ".", key));
  }
  return TextFieldOr(config, key, "", where);
}

absl::StatusOr<std::vector<int32_t>> EosIds(const json& config, const std::string& where) {
  std::vector<int32_t> ids;
  const json* value = FindField(config, "eos_token_id");
  if (value == nullptr) return ids;
  const std::string field = absl::StrCat(where, ": eos_token_id");
  if (!value->is_array()) {
    ASSIGN_OR_RETURN(const int32_t id, ToTokenId(*value, field));
    return std::vector<int32_t>{id};
  }
  for (const json& member : *value) {
    ASSIGN_OR_RETURN(const int32_t id, ToTokenId(member, field));
    ids.push_back(id);
  }
  return ids;
}

// Either one template or a list of named ones, of which "default" is the plain chat.
absl::StatusOr<std::string> TemplateField(const json& config, const std::string& where) {
  const json* value = FindField(config, "chat_template");
  if (value == nullptr || !value->is_array()) {
    return TextFieldOr(config, "chat_template", "", where);
  }
  for (const json& member : *value) {
    ASSIGN_OR_RETURN(const std::string name, TextFieldOr(member, "name", "", where));
    if (name == "default") return TextField(member, "template", where);
  }
  return std::string();
}

absl::Status ReadAdded(const json& config, const std::string& where,
                       std::vector<AddedToken>& added) {
  const json* tokens = FindField(config, "added_tokens_decoder");
  if (tokens == nullptr) return absl::OkStatus();
  for (const auto& [key, value] : tokens->items()) {
    const std::string field = absl::StrCat(where, ".added_tokens_decoder.", key);
    AddedToken token;
    if (!absl::SimpleAtoi(key, &token.id)) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": the key is not a token id"));
    }
    ASSIGN_OR_RETURN(token.text, TextField(value, "content", field));
    ASSIGN_OR_RETURN(token.special, FlagFieldOr(value, "special", false, field));
    ASSIGN_OR_RETURN(token.left_strip, FlagFieldOr(value, "lstrip", false, field));
    ASSIGN_OR_RETURN(token.right_strip, FlagFieldOr(value, "rstrip", false, field));
    ASSIGN_OR_RETURN(token.single_word, FlagFieldOr(value, "single_word", false, field));
    added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& directory) {
  const auto path = [&](const char* name) {
    return (std::filesystem::path(directory) / name).string();
  };
  TokenizerConfig config;
  const std::string where = path("tokenizer_config.json");
  ASSIGN_OR_RETURN(const json main, ReadOptional(where, kTokenizerJson));
  ASSIGN_OR_RETURN(config.bos_token, TokenField(main, "bos_token", where));
  ASSIGN_OR_RETURN(config.eos_token, TokenField(main, "eos_token", where));
  if (FindField(main, "add_bos_token") != nullptr) {
    ASSIGN_OR_RETURN(config.add_bos, FlagFieldOr(main, "add_bos_token", false, where));
  }
  RETURN_IF_ERROR(ReadAdded(main, where, config.added));

  // Newer checkpoints keep the template in a file of its own.
  absl::StatusOr<std::string> jinja = ReadTextFile(path("chat_template.jinja"), kMaxTemplateBytes);
  if (absl::IsNotFound(jinja.status())) jinja = TemplateField(main, where);
  if (!jinja.ok()) return jinja.status();
  config.chat_template = *std::move(jinja);

  const std::string generation = path("generation_config.json");
  ASSIGN_OR_RETURN(const json generation_config, ReadOptional(generation, kConfigJson));
  ASSIGN_OR_RETURN(config.generation_eos, EosIds(generation_config, generation));
  ASSIGN_OR_RETURN(const json model_config, ReadOptional(path("config.json"), kConfigJson));
  ASSIGN_OR_RETURN(config.model_eos, EosIds(model_config, path("config.json")));
  return config;
}

absl::Status ApplyTokenizerConfig(const TokenizerConfig& config, const std::string& directory,
                                  TokenizerParts& parts) {
  const Vocabulary& vocabulary = *parts.vocabulary;
  if (!config.bos_token.empty()) parts.bos = vocabulary.Find(config.bos_token);
  if (parts.bos < 0 && !parts.prefix.empty()) parts.bos = parts.prefix.front();
  if (config.add_bos == false) parts.prefix.clear();
  if (config.add_bos == true && parts.prefix.empty()) {
    if (parts.bos < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(directory, ": add_bos_token is true, but bos_token \"", config.bos_token,
                       "\" is not in the vocabulary"));
    }
    parts.prefix = {parts.bos};
  }
  // generation_config.json is made for this and complete; the others name one token.
  std::vector<int32_t> named = config.generation_eos;
  if (named.empty()) {
    named = config.model_eos;
    const int32_t id = config.eos_token.empty() ? -1 : vocabulary.Find(config.eos_token);
    if (std::find(named.begin(), named.end(), id) == named.end()) named.push_back(id);
    named = EndTokens(vocabulary, std::move(named));
  }
  for (const int32_t id : named) {
    if (vocabulary.Contains(id)) parts.eos.push_back(id);
  }
  parts.chat_template = config.chat_template;
  return absl::OkStatus();
}

}  // namespace keyline
