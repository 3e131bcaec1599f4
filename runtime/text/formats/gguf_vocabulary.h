// Vocabulary of a GGUF file: `tokenizer.ggml.model` gpt2 (byte-level BPE with a named
// pre-tokenizer) or llama (SentencePiece BPE by scores). Meaning of the keys:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include "absl/status/statusor.h"
#include "runtime/files/gguf/gguf.h"
#include "runtime/text/encode/assembled_tokenizer.h"

namespace keyline {

// UNIMPLEMENTED names the key and what is supported, for other models and pre-tokenizers;
// INVALID_ARGUMENT for arrays that do not fit each other. `file` is not needed afterwards.
absl::StatusOr<TokenizerParts> ReadGgufVocabulary(const GgufFile& file);

}  // namespace keyline
