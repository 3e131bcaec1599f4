// The steps before a vocabulary: UTF-8, NFC, prefixes, expressions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/text/encode/added_tokens.h"
#include "runtime/text/prepare/nfc.h"
#include "runtime/text/prepare/prefix_trie.h"
#include "runtime/text/prepare/sentencepiece_normalizer.h"
#include "runtime/text/prepare/splitter.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

using testing::ElementsAre;

std::string Utf8(std::initializer_list<uint32_t> code_points) {
  std::string text;
  for (const uint32_t c : code_points) AppendUtf8(c, text);
  return text;
}

TEST(Utf8Text, EveryCodePointComesBack) {
  for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = Utf8({c});
    const Utf8Char first = FirstChar(text);
    ASSERT_TRUE(first.complete);
    ASSERT_EQ(first.code_point, c);
    ASSERT_EQ(first.length, static_cast<int>(text.size()));
    ASSERT_EQ(Utf8Length(static_cast<unsigned char>(text[0])), first.length);
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Char beginning = FirstChar(text.substr(0, cut));
      ASSERT_FALSE(beginning.complete);
      ASSERT_EQ(beginning.length, static_cast<int>(cut));
    }
  }
}

// Cases of Unicode's NormalizationTest.txt and UAX #15.
TEST(Nfc, ComposesAndOrders) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {Utf8({0x1E0A}), Utf8({0x1E0A})},
      {Utf8({0x44, 0x307}), Utf8({0x1E0A})},
      {Utf8({0x44, 0x307, 0x323}), Utf8({0x1E0C, 0x307})},
      {Utf8({0x1E0A, 0x323}), Utf8({0x1E0C, 0x307})},
      {Utf8({0x212B}), Utf8({0xC5})},
      {Utf8({0x344}), Utf8({0x308, 0x301})},
      {Utf8({0x958}), Utf8({0x915, 0x93C})},  // excluded from composition
      {Utf8({0x1112, 0x1161, 0x11AB}), Utf8({0xD55C})},
      {Utf8({0xAC00, 0x11A8}), Utf8({0xAC01})},
      {Utf8({0xAC00, 0x11A7}), Utf8({0xAC00, 0x11A7})},
      {Utf8({0x61, 0x315, 0x300, 0x5AE, 0x300, 0x62}), Utf8({0xE0, 0x5AE, 0x300, 0x315, 0x62})},
      {Utf8({0xF900, 0x2F800}), Utf8({0x8C48, 0x4E3D})},
      {Utf8({0x301, 0x61}), Utf8({0x301, 0x61})},  // no starter before it
      {"plain", "plain"},
  };
  for (const auto& [given, want] : cases) {
    std::string text = given;
    ComposeNfc(text);
    EXPECT_EQ(text, want) << testing::PrintToString(given);
    ComposeNfc(text);
    EXPECT_EQ(text, want);
  }
}

TEST(PrefixTrie, FindsTheLongestAndAll) {
  const PrefixTrie trie({{"a", 0}, {"abc", 1}, {"ab", 2}, {"b", 3}, {"", 4}, {"ab", 5}});
  EXPECT_EQ(trie.Longest("abcd").value, 1);
  EXPECT_EQ(trie.Longest("abx").length, 2u);
  EXPECT_EQ(trie.Longest("abx").value, 2);  // the first of two alike
  EXPECT_EQ(trie.Longest("x").length, 0u);
  EXPECT_EQ(trie.Longest("").length, 0u);
  EXPECT_EQ(PrefixTrie().Longest("a").length, 0u);
  std::vector<int32_t> all;
  trie.ForEach("abcd", [&](int32_t value, size_t) { all.push_back(value); });
  EXPECT_THAT(all, ElementsAre(0, 2, 1));
}

std::vector<std::string> Cut(const AddedTokens& tokens, std::string_view text, bool special) {
  std::vector<TextSpan> spans;
  tokens.Cut(text, special, spans);
  std::vector<std::string> out;
  for (const TextSpan& span : spans) {
    std::string& shown = out.emplace_back(span.text);
    if (span.token >= 0) shown += absl::StrCat("#", span.token);
  }
  return out;
}

TEST(AddedTokens, LongestFirstAndStripping) {
  const AddedTokens tokens({{.text = "<a>", .id = 1, .special = true},
                            {.text = "<a><a>", .id = 2, .special = true},
                            {.text = "<l>", .id = 3, .left_strip = true},
                            {.text = "<r>", .id = 4, .right_strip = true},
                            {.text = "cat", .id = 5, .single_word = true}});
  EXPECT_THAT(Cut(tokens, "x<a><a><a>", true), ElementsAre("x", "<a><a>#2", "<a>#1"));
  EXPECT_THAT(Cut(tokens, "x<a>", false), ElementsAre("x<a>"));
  EXPECT_THAT(Cut(tokens, "x \n<l> y", false), ElementsAre("x", " \n<l>#3", " y"));
  EXPECT_THAT(Cut(tokens, "x <r> \xE3\x80\x80y", false),
              ElementsAre("x ", "<r> \xE3\x80\x80#4", "y"));
  EXPECT_THAT(Cut(tokens, "cats cat,concat", false), ElementsAre("cats ", "cat#5", ",concat"));
  EXPECT_THAT(Cut(tokens, "", false), ElementsAre());
}

TEST(Splitter, NamesWhatIsWrongWithAnExpression) {
  const auto broken = Expression::Compile("a(b");
  EXPECT_EQ(broken.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken.status().message()), testing::HasSubstr("a(b"));
  EXPECT_EQ(Expression::Compile("[a&&b]").status().code(), absl::StatusCode::kUnimplemented);
}

// Expressions that backtrack without end are stopped.
TEST(Splitter, StopsRunawayExpressions) {
  std::string text(1 << 20, 'a');
  text.push_back('!');
  for (const char* pattern : {"(a+)+$", "(a|aa)+$", "(?:a?){40}a{40}$", "a+b", "(.*)*x"}) {
    auto expression = Expression::Compile(pattern);
    ASSERT_TRUE(expression.ok()) << expression.status();
    Splitter splitter;
    splitter.Add(*std::move(expression), SplitBehavior::kIsolated, false);
    std::vector<std::string_view> pieces;
    const auto start = std::chrono::steady_clock::now();
    const absl::Status status = splitter.Split(text, pieces);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << pattern;
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }
}

TEST(Splitter, LiteralsAreNoExpressions) {
  auto literal = Expression::Literal(".*[x]\\E");
  ASSERT_TRUE(literal.ok()) << literal.status();
  Splitter splitter;
  splitter.Add(*std::move(literal), SplitBehavior::kRemoved, false);
  std::vector<std::string_view> pieces;
  ASSERT_TRUE(splitter.Split("a.*[x]\\Eb.x", pieces).ok());
  EXPECT_THAT(pieces, ElementsAre("a", "b.x"));
}

TEST(SentencePieceNormalizer, RefusesBrokenTables) {
  for (const std::string& blob :
       {std::string("\x04"), std::string("\xFF\xFF\xFF\x7F\0", 5), std::string("\0\0\0\0\0", 5),
        std::string("\x03\0\0\0abc\0", 8), std::string("\x04\0\0\0abcd", 8)}) {
    EXPECT_EQ(MakeSentencePieceNormalizer({.charsmap = blob, .untouched = {}}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

// A table of any bytes may map to nonsense, but reads nothing outside itself.
TEST(SentencePieceNormalizer, SurvivesAnyTable) {
  std::string blob("\x40\0\0\0", 4);
  uint32_t state = 1;
  for (int i = 0; i < 0x40 + 8; ++i) {
    state = state * 1664525 + 1013904223;
    blob.push_back(static_cast<char>(state >> 24));
  }
  blob.push_back('\0');
  auto step = MakeSentencePieceNormalizer({.charsmap = blob, .untouched = {}});
  ASSERT_TRUE(step.ok()) << step.status();
  for (int c = 0; c < 128; ++c) {
    std::string text(4, static_cast<char>(c));
    (*step)->Apply(text, true);
  }
}

}  // namespace
}  // namespace keyline
