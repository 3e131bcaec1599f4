#include "runtime/text/end_marker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace keyline {
namespace {

using ::testing::HasSubstr;

const Tokenizer& SmolLM() {
  static const std::unique_ptr<Tokenizer> tokenizer = *LoadTokenizer("tests/golden/text/smollm");
  return *tokenizer;
}

std::vector<int32_t> Tokens(const std::string& text) {
  return *SmolLM().Encode(text, {.add_bos = false, .parse_special = true});
}

// The text of what is protected.
std::string Protected(const std::string& prompt, const std::string& expression) {
  const std::vector<int32_t> ids = Tokens(prompt);
  const absl::StatusOr<int> count = TokensToEndMarker(SmolLM(), ids, expression);
  EXPECT_TRUE(count.ok()) << count.status();
  if (!count.ok()) return "";
  EXPECT_LE(*count, static_cast<int>(ids.size()));
  return Decode(SmolLM(), std::span(ids).first(*count), /*keep_special=*/true);
}

std::string Refusal(const std::string& prompt, const std::string& expression) {
  const auto count = TokensToEndMarker(SmolLM(), Tokens(prompt), expression);
  EXPECT_EQ(count.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(count.status().message());
}

TEST(EndMarker, EndsWithTheTokenThatCompletesTheFirstMatch) {
  const std::string prompt = "Be kind.\n###\nHello ### there";
  EXPECT_THAT(Protected(prompt, "###"), ::testing::StartsWith("Be kind.\n###"));
  EXPECT_THAT(Protected(prompt, "###"), ::testing::Not(HasSubstr("Hello")));
  EXPECT_THAT(Protected(prompt, "there$"), ::testing::Eq(prompt));
  EXPECT_THAT(Protected(prompt, "(?i)be"), ::testing::Eq("Be"));
}

TEST(EndMarker, SpecialTokensCountAsSpelled) {
  const std::string system = "<|im_start|>system\nBe kind.<|im_end|>";
  EXPECT_EQ(Protected(system + "\n<|im_start|>user\nHi<|im_end|>\n", "<\\|im_end\\|>"), system);
}

TEST(EndMarker, CharactersOfSeveralTokensAreFound) {
  const std::string prompt = "a \xf0\x9f\x8c\x8a b";  // a wave, several tokens of bytes
  EXPECT_EQ(Protected(prompt, "\xf0\x9f\x8c\x8a"), "a \xf0\x9f\x8c\x8a");
}

TEST(EndMarker, WhatCannotBeIsRefused) {
  EXPECT_THAT(Refusal("abc", "x+"), HasSubstr("'x+' matches nothing in the prompt's"));
  EXPECT_THAT(Refusal("abc", "x*"), HasSubstr("matches an empty text"));
  EXPECT_THAT(Refusal("abc", "a(b"), HasSubstr("'a(b' is no regular expression of RE2"));
  EXPECT_THAT(Refusal("abc", "(a)\\1"), HasSubstr("is no regular expression of RE2"));
  EXPECT_THAT(Refusal("abc", std::string(257, 'a')), HasSubstr("has 257 bytes, at most 256"));
  EXPECT_THAT(Refusal("abc", "((a{100}){100}){100}"), HasSubstr("RE2"));
}

TEST(EndMarker, TimeIsLinearInThePrompt) {
  // Backtracking would take 2^n steps.
  EXPECT_THAT(Refusal(std::string(20000, 'a'), "(a*)*b"), HasSubstr("matches nothing"));
}

}  // namespace
}  // namespace keyline
