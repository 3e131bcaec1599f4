// What SentencePiece does to a text before it cuts it into pieces: mapping of characters by the
// model's own compiled table, whitespace rules, spaces as U+2581.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/text/prepare/normalizer.h"
#include "runtime/text/prepare/prefix_trie.h"

namespace keyline {

struct SentencePieceRules {
  std::string charsmap;  // NormalizerSpec.precompiled_charsmap; "": identity
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  PrefixTrie untouched;  // pieces that pass as they are (user-defined ones)
};

// INVALID_ARGUMENT for a broken charsmap.
absl::StatusOr<std::unique_ptr<NormalizerStep>> MakeSentencePieceNormalizer(
    SentencePieceRules rules);

}  // namespace keyline
