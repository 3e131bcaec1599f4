// A tokenizer.json as read: its two long lists flat, all else as a JSON document. As a document the
// lists of a vocabulary of 150,000 would be half a million small allocations: four times the time.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

struct TokenizerDocument {
  struct Entry {  // of model.vocab
    std::string_view text;
    int32_t id;
  };
  struct Merge {  // of model.merges
    std::string_view left, right;
  };

  nlohmann::json rest;  // without model.vocab and model.merges
  std::vector<Entry> vocab;
  std::vector<Merge> merges;
  std::unique_ptr<const std::string> texts;  // what the views show
};

// INVALID_ARGUMENT: see ReadJsonFile; also a vocab that is not text to id, and merges that are
// neither "a b" nor, as since version 0.20 of tokenizers, ["a", "b"].
absl::StatusOr<TokenizerDocument> ReadTokenizerDocument(const std::string& path);

}  // namespace keyline
