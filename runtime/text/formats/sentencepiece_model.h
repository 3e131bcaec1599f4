// tokenizer.model of SentencePiece: unigram and BPE.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/text/encode/assembled_tokenizer.h"

namespace keyline {

// `directory` holds tokenizer.model and perhaps the files of tokenizer_config.h, whose
// added_tokens_decoder adds tokens. BOS is asked for unless tokenizer_config.json says otherwise:
// the file itself does not tell. UNIMPLEMENTED: the algorithms WORD and CHAR, whitespace as suffix.
absl::StatusOr<TokenizerParts> ReadSentencePieceModel(const std::string& directory);

}  // namespace keyline
