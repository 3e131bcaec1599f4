// The input is a user's text, encoded with small vocabularies of every kind. Run it in the
// repository's root: the vocabularies are those of tests/golden/text.
#include <glog/logging.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/detokenizer.h"
#include "runtime/text/prepare/utf8.h"
#include "runtime/text/tokenizer.h"

namespace {

using keyline::Tokenizer;

const std::vector<std::unique_ptr<Tokenizer>>& Tokenizers() {
  static const auto& tokenizers = *[] {
    auto* made = new std::vector<std::unique_ptr<Tokenizer>>;
    // Byte-level ones first: these must give back what they were given.
    for (const char* name :
         {"gpt2", "smollm", "llama3", "qwen2", "llama2", "gemma", "metaspace-always",
          "unigram-nfkc", "unigram-bytes", "bpe-nfkc", "gguf-llama/model.gguf"}) {
      auto loaded = keyline::LoadTokenizer(std::string("tests/golden/text/") + name);
      CHECK(loaded.ok()) << loaded.status();
      made->push_back(*std::move(loaded));
    }
    return made;
  }();
  return tokenizers;
}

constexpr size_t kLossless = 3;  // the first of them, qwen2 normalizes

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const bool utf8 = keyline::CheckUtf8(text).ok();
  for (size_t i = 0; i < Tokenizers().size(); ++i) {
    const Tokenizer& tokenizer = *Tokenizers()[i];
    for (const bool parse_special : {false, true}) {
      const auto ids = tokenizer.Encode(text, {.add_bos = false, .parse_special = parse_special});
      CHECK_EQ(ids.ok(), utf8) << ids.status();
      if (!ids.ok()) continue;
      const std::string decoded = keyline::Decode(tokenizer, *ids, /*keep_special=*/true);
      if (i < kLossless) CHECK_EQ(decoded, text);
      CHECK(keyline::CheckUtf8(decoded).ok());
      keyline::Detokenizer detokenizer(tokenizer);
      std::string streamed;
      for (const int32_t id : *ids) {
        const std::string part = detokenizer.Push(id);
        CHECK(keyline::CheckUtf8(part).ok());
        streamed += part;
      }
      CHECK_EQ(streamed + detokenizer.Flush(), keyline::Decode(tokenizer, *ids));
    }
  }
  return 0;
}
