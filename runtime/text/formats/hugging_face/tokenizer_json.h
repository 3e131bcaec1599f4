// tokenizer.json of Hugging Face: byte-level BPE and BPE with byte fallback.
//
// Read are: added_tokens; normalizers NFC, Prepend, Replace; pre-tokenizers ByteLevel, Digits,
// Metaspace, Split; the BPE model; decoders ByteLevel, ByteFallback, Fuse, Metaspace, Replace,
// Strip; post-processors ByteLevel and TemplateProcessing, of which only what stands before the
// text counts: a prompt is to be continued, so nothing is put behind it.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/text/encode/assembled_tokenizer.h"

namespace keyline {

// `directory` holds tokenizer.json and perhaps the files of tokenizer_config.h. UNIMPLEMENTED names
// the field and what is supported there.
absl::StatusOr<TokenizerParts> ReadTokenizerJson(const std::string& directory);

}  // namespace keyline
