// Which tokens end an answer, where a model's files name only one of them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/text/encode/vocabulary.h"

namespace keyline {

// `named` first, then the vocabulary's special tokens by which chat models end a turn or a text;
// each once.
std::vector<int32_t> EndTokens(const Vocabulary& vocabulary, std::vector<int32_t> named);

}  // namespace keyline
