// The stages around the model in a tokenizer.json: normalizer, pre_tokenizer, post_processor,
// decoder. For tokenizer_json.cc.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "runtime/text/encode/assembled_tokenizer.h"

namespace keyline {

// What these stages say about how the vocabulary spells text.
struct JsonSpelling {
  bool pre_tokenizer_byte_level = false;
  bool decoder_byte_level = false;
  bool decoder_marks_spaces = false;
};

// `path` is for messages. Sets normalizer, lead_in, splitter, prefix and strips_leading_space of
// `parts`; UNIMPLEMENTED names the stage, its type and the types that are supported.
absl::Status ReadJsonPipeline(const nlohmann::json& root, const std::string& path,
                              TokenizerParts& parts, JsonSpelling& spelling);

}  // namespace keyline
