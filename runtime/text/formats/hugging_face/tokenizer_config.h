// What the small files of a Hugging Face directory say about its vocabulary: tokenizer_config.json,
// chat_template.jinja, generation_config.json and config.json. All may be missing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/text/encode/assembled_tokenizer.h"

namespace keyline {

struct TokenizerConfig {
  std::string bos_token, eos_token;     // texts; "": not named
  std::optional<bool> add_bos;          // nothing: the vocabulary's own file decides
  std::string chat_template;            // Jinja, or ""
  std::vector<AddedToken> added;        // added_tokens_decoder
  std::vector<int32_t> generation_eos;  // eos_token_id of generation_config.json
  std::vector<int32_t> model_eos;       // and of config.json
};

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& directory);

// Sets bos, prefix, eos and chat template of `parts`, whose vocabulary is complete.
// INVALID_ARGUMENT where a BOS is wanted that the vocabulary lacks.
absl::Status ApplyTokenizerConfig(const TokenizerConfig& config, const std::string& directory,
                                  TokenizerParts& parts);

}  // namespace keyline
