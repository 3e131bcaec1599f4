// Expressions by which published vocabularies split text, as their makers wrote them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

extern const char kGpt2Expression[];

// What a GGUF file's `tokenizer.ggml.pre` names.
struct NamedSplit {
  std::vector<std::string> expressions;  // one after the other, matches isolated
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
};
// UNIMPLEMENTED lists the names that are known.
absl::StatusOr<NamedSplit> FindNamedSplit(std::string_view name);

}  // namespace keyline
