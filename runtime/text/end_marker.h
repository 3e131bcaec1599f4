// Where a part of a prompt ends (its system prompt, say), by a regular expression of the user's.
//
// Expressions are RE2's (https://github.com/google/re2/wiki/Syntax): time is linear in the prompt,
// whatever the expression. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/text/tokenizer.h"

namespace keyline {

constexpr size_t kMaxMarkerBytes = 256;

// INVALID_ARGUMENT says what is wrong with the expression, and where.
absl::Status CheckEndMarker(const std::string& expression);

// How many tokens the prompt has up to the end of the first match, the token that completes it
// included. Special tokens count as the vocabulary spells them. INVALID_ARGUMENT where nothing
// matches, or only an empty text.
absl::StatusOr<int> TokensToEndMarker(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                      const std::string& expression);

}  // namespace keyline
