// Text that is made to be slow or to be taken for what it is not. A quadratic step would take
// minutes on these; the bound is wide because test machines are busy.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <tuple>

#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"

namespace keyline {
namespace {

constexpr size_t kBytes = 1 << 20;
constexpr auto kBound = std::chrono::seconds(20);

struct Hostile {
  const char* name;
  const char* unit;
};

std::string Repeat(std::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() + unit.size() <= bytes) text += unit;
  return text;
}

std::unique_ptr<Tokenizer> Load(const std::string& name) {
  auto loaded = LoadTokenizer("tests/golden/text/" + name);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return *std::move(loaded);
}

class HostileText : public testing::TestWithParam<std::tuple<const char*, Hostile>> {};

TEST_P(HostileText, IsEncodedInTime) {
  const auto& [name, hostile] = GetParam();
  const auto tokenizer = Load(name);
  const std::string text = Repeat(hostile.unit, kBytes);
  const auto start = std::chrono::steady_clock::now();
  const auto ids = tokenizer->Encode(text, {.add_bos = false, .parse_special = true});
  EXPECT_LT(std::chrono::steady_clock::now() - start, kBound);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_GT(ids->size(), 1000u);
  EXPECT_EQ(Decode(*tokenizer, *ids, /*keep_special=*/true).size(), text.size());
}

// One vocabulary of each way to cut: GPT-2's, Llama-3's and Qwen2's expressions (NFC besides),
// whole texts by merges and by scores, unigram.
INSTANTIATE_TEST_SUITE_P(
    All, HostileText,
    testing::Combine(testing::Values("gpt2", "llama3", "qwen2", "smollm", "gguf-llama/model.gguf",
                                     "unigram-bytes"),
                     testing::Values(Hostile{"letters", "a"}, Hostile{"capitals", "A"},
                                     Hostile{"spaces", " "}, Hostile{"digits", "7"},
                                     Hostile{"newlines", "\n"}, Hostile{"tabs_then_x", "\t\t\t\tx"},
                                     Hostile{"apostrophes", "'"},
                                     Hostile{"joined_emoji", "\xF0\x9F\x91\xA9\xE2\x80\x8D"},
                                     Hostile{"half_specials", "<|im_"})),
    [](const auto& info) {
      std::string name = std::get<0>(info.param);
      name = name.substr(0, name.find('/')) + "_" + std::get<1>(info.param).name;
      for (char& c : name) c = c == '-' ? '_' : c;
      return name;
    });

TEST(HostileText, EndlessMarksAreOrderedInTime) {
  const auto tokenizer = Load("qwen2");
  // Two classes of marks in turn: NFC sorts the whole run.
  const auto start = std::chrono::steady_clock::now();
  const auto ids = tokenizer->Encode(Repeat("\xCC\x81\xCC\xA3", kBytes), {});
  EXPECT_LT(std::chrono::steady_clock::now() - start, kBound);
  ASSERT_TRUE(ids.ok()) << ids.status();
}

class InvalidUtf8 : public testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(InvalidUtf8, IsRefusedWithItsOffset) {
  const auto& [text, offset] = GetParam();
  for (const char* name : {"gpt2", "llama2", "unigram-nfkc"}) {
    const auto ids = Load(name)->Encode(text, {});
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(ids.status().message()).find("byte offset " + std::to_string(offset)),
              std::string::npos)
        << ids.status();
  }
}

INSTANTIATE_TEST_SUITE_P(All, InvalidUtf8,
                         testing::Values(std::tuple("\xFF", 0), std::tuple("abc\x80", 3),
                                         std::tuple("abcdefgh\xC3", 8),
                                         std::tuple("\xC0\xAF", 0),              // overlong
                                         std::tuple("ok \xE0\x80\xAF", 3),       // overlong
                                         std::tuple("\xC3\xA9\xED\xA0\x80", 2),  // surrogate
                                         std::tuple("\xF4\x90\x80\x80", 0),      // above U+10FFFF
                                         std::tuple("\xF0\x9F\x91\xA9\xF0\x9F", 4)));  // cut short

TEST(HostileText, NulIsTextLikeAnyOther) {
  const std::string text("a\0b", 3);
  for (const char* name : {"gpt2", "llama2", "unigram-bytes"}) {
    const auto tokenizer = Load(name);
    const auto ids = tokenizer->Encode(text, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(Decode(*tokenizer, *ids), text) << name;
  }
}

TEST(HostileText, SpecialTokensInTextStayText) {
  for (const char* name : {"llama3", "qwen2", "llama2", "unigram-bytes", "bpe-bytes",
                           "gguf-smollm/model.gguf", "gguf-llama/model.gguf"}) {
    const auto tokenizer = Load(name);
    const std::string text = "<s></s><unk><|im_start|><|im_end|><0x41>";
    const auto ids = tokenizer->Encode(text, {.add_bos = false});
    ASSERT_TRUE(ids.ok()) << ids.status();
    for (const int32_t id : *ids) EXPECT_FALSE(tokenizer->IsSpecial(id)) << name << " " << id;
    EXPECT_EQ(Decode(*tokenizer, *ids), text) << name;
  }
}

TEST(HostileText, UnknownIdsHaveNoText) {
  const auto tokenizer = Load("gpt2");
  for (const int32_t id : {-1, -2147483647, tokenizer->vocab_size(), 2147483647}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_EQ(tokenizer->TokenText(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

}  // namespace
}  // namespace keyline
