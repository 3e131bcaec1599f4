#include "runtime/text/detokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

// A vocabulary of single bytes (ids 0 to 255), a word with a leading space (256) and a special
// token (257).
class ByteTokens : public Tokenizer {
 public:
  explicit ByteTokens(bool strips) : strips_(strips) {
    for (int i = 0; i < 256; ++i) texts_.push_back(std::string(1, static_cast<char>(i)));
    texts_.insert(texts_.end(), {" word", "<end>"});
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions&) const override {
    return std::vector<int32_t>(text.begin(), text.end());
  }
  std::string_view TokenBytes(int32_t id) const override {
    return id == 257 ? std::string_view() : std::string_view(texts_[id]);
  }
  std::string_view TokenText(int32_t id) const override { return texts_[id]; }
  bool IsSpecial(int32_t id) const override { return id == 257; }
  int32_t Find(std::string_view) const override { return -1; }
  bool strips_leading_space() const override { return strips_; }
  int vocab_size() const override { return 258; }
  int32_t bos_id() const override { return -1; }
  std::vector<int32_t> eos_ids() const override { return {257}; }
  const std::string& chat_template() const override { return texts_.front(); }

 private:
  std::vector<std::string> texts_;
  bool strips_;
};

std::vector<int32_t> Bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

TEST(Detokenizer, HoldsAnUnfinishedCharacterBack) {
  const ByteTokens tokens(false);
  Detokenizer detokenizer(tokens);
  EXPECT_EQ(detokenizer.Push(0xF0), "");
  EXPECT_EQ(detokenizer.Push(0x9F), "");
  EXPECT_EQ(detokenizer.Push(0x91), "");
  EXPECT_EQ(detokenizer.Push(0xA9), "\xF0\x9F\x91\xA9");
  EXPECT_EQ(detokenizer.Push('x'), "x");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(Detokenizer, FlushesWhatNeverBecameACharacter) {
  const ByteTokens tokens(false);
  Detokenizer detokenizer(tokens);
  EXPECT_EQ(detokenizer.Push(0xE2), "");
  EXPECT_EQ(detokenizer.Push(0x82), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(Detokenizer, MarksInvalidBytesAtOnce) {
  const ByteTokens tokens(false);
  Detokenizer detokenizer(tokens);
  EXPECT_EQ(detokenizer.Push(0xFF), "\uFFFD");
  EXPECT_EQ(detokenizer.Push(0xC3), "");
  EXPECT_EQ(detokenizer.Push('('), "\uFFFD(");
}

TEST(Detokenizer, DropsOneSpaceOfTheFirstWordOnly) {
  const ByteTokens tokens(true);
  Detokenizer detokenizer(tokens);
  EXPECT_EQ(detokenizer.Push(257), "");  // a special token is no word
  EXPECT_EQ(detokenizer.Push(256), "word");
  EXPECT_EQ(detokenizer.Push(256), " word");
  EXPECT_EQ(Decode(tokens, std::vector<int32_t>{257, 256, 256}), "word word");
  EXPECT_EQ(Decode(tokens, std::vector<int32_t>{257, 256, 256}, true), "<end>word word");
}

TEST(Detokenizer, KeepsTheSpaceWhereATextGoesOn) {
  const ByteTokens tokens(true);
  Detokenizer detokenizer(tokens, /*at_start=*/false);
  EXPECT_EQ(detokenizer.Push(256), " word");
}

TEST(Detokenizer, AllBytesInOrder) {
  const ByteTokens tokens(false);
  std::vector<int32_t> ids;
  for (int i = 0; i < 256; ++i) ids.push_back(i);
  std::string want;
  for (int i = 0; i < 128; ++i) want.push_back(static_cast<char>(i));
  // No lead byte is followed by what it needs, so each is a mark of its own.
  for (int i = 128; i < 256; ++i) want += "\uFFFD";
  EXPECT_EQ(Decode(tokens, ids), want);
  Detokenizer detokenizer(tokens);
  std::string streamed;
  for (const int32_t id : ids) {
    const std::string text = detokenizer.Push(id);
    EXPECT_TRUE(CheckUtf8(text).ok());
    streamed += text;
  }
  EXPECT_EQ(streamed + detokenizer.Flush(), want);
}

// The Unicode standard's example of U+FFFD for maximal subparts (chapter 3, table 3-11), and what
// surrogates and overlong forms give.
TEST(Detokenizer, MarksMaximalSubparts) {
  const ByteTokens tokens(false);
  EXPECT_EQ(Decode(tokens, Bytes("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41")),
            "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(Decode(tokens, Bytes("\xED\xA0\x80")), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Decode(tokens, Bytes("\xC0\xAF")), "\uFFFD\uFFFD");
}

}  // namespace
}  // namespace keyline
