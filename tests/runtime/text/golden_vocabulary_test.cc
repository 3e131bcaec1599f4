// Small vocabularies of every kind against the ids of the libraries that made them
// (tests/fixtures/make_tokenizers.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/text/golden_cases.h"

namespace keyline {
namespace {

class GoldenVocabulary : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::string path = std::string("tests/golden/text/") + GetParam();
    if (std::filesystem::exists(path + "/model.gguf")) path += "/model.gguf";
    auto loaded = LoadTokenizer(path);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    cases_ = ReadGoldenCases(GetParam());
    ASSERT_GE(cases_.size(), 90u);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<GoldenCase> cases_;
};

TEST_P(GoldenVocabulary, EncodesAsItsOwnLibrary) {
  for (const GoldenCase& golden : cases_) {
    const auto ids = tokenizer_->Encode(golden.text, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_THAT(*ids, testing::ElementsAreArray(golden.ids)) << testing::PrintToString(golden.text);
  }
}

TEST_P(GoldenVocabulary, ParsesSpecialTokensOnlyWhenAsked) {
  for (const GoldenCase& golden : cases_) {
    if (!golden.special_ids) continue;
    const auto ids = tokenizer_->Encode(golden.text, {.parse_special = true});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_THAT(*ids, testing::ElementsAreArray(*golden.special_ids))
        << testing::PrintToString(golden.text);
  }
}

TEST_P(GoldenVocabulary, DecodesAsItsOwnLibrary) {
  for (const GoldenCase& golden : cases_) {
    if (!golden.decoded) continue;
    EXPECT_EQ(Decode(*tokenizer_, golden.ids), *golden.decoded)
        << testing::PrintToString(golden.text);
  }
}

TEST_P(GoldenVocabulary, StreamsWhatDecodeGives) {
  for (const GoldenCase& golden : cases_) {
    Detokenizer detokenizer(*tokenizer_);
    std::string text;
    for (const int32_t id : golden.ids) text += detokenizer.Push(id);
    EXPECT_EQ(text + detokenizer.Flush(), Decode(*tokenizer_, golden.ids));
  }
}

TEST_P(GoldenVocabulary, FindsEveryTokenByItsText) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (tokenizer_->TokenText(id).empty()) continue;
    EXPECT_EQ(tokenizer_->Find(tokenizer_->TokenText(id)), id);
    EXPECT_EQ(tokenizer_->IsSpecial(id) && !tokenizer_->TokenBytes(id).empty(), false);
  }
  EXPECT_EQ(tokenizer_->Find("no such token"), -1);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenVocabulary,
                         testing::Values("gpt2", "gpt2-prefix-space", "llama3", "qwen2", "smollm",
                                         "llama2", "gemma", "metaspace-always", "metaspace-first",
                                         "metaspace-never", "split-removed",
                                         "split-merged-with-previous", "split-merged-with-next",
                                         "split-contiguous", "unigram-nfkc", "unigram-bytes",
                                         "bpe-nfkc", "bpe-bytes", "gguf-smollm", "gguf-llama"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace keyline
