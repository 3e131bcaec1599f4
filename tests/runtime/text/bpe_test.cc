#include "runtime/text/encode/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/text/encode/unigram.h"

namespace keyline {
namespace {

using testing::ElementsAre;

std::vector<int32_t> Encode(const PieceModel& model, std::vector<std::string_view> pieces) {
  std::vector<int32_t> ids;
  model.Encode(pieces, ids);
  return ids;
}

class BpeTest : public testing::Test {
 protected:
  BpeTest() : vocabulary_(Spelling::kPlain) {
    int32_t id = 0;
    for (const char* text : {"a", "b", "c", "ab", "bc", "abc", "aa", "aaaa"}) {
      EXPECT_TRUE(vocabulary_.Put(id++, text, TokenKind::kNormal).ok());
    }
  }
  Vocabulary vocabulary_;
};

TEST_F(BpeTest, MergesByRankNotByPlace) {
  Bpe bpe(&vocabulary_, {});
  ASSERT_TRUE(bpe.AddMerge("b", "c").ok());
  ASSERT_TRUE(bpe.AddMerge("a", "b").ok());
  EXPECT_THAT(Encode(bpe, {"abc"}), ElementsAre(0, 4));
  EXPECT_THAT(Encode(bpe, {"abab"}), ElementsAre(3, 3));
}

TEST_F(BpeTest, OfEqualRanksTheLeftmostMergesFirst) {
  Bpe bpe(&vocabulary_, {});
  ASSERT_TRUE(bpe.AddMerge("a", "a").ok());
  ASSERT_TRUE(bpe.AddMerge("aa", "aa").ok());
  EXPECT_THAT(Encode(bpe, {"aaa"}), ElementsAre(6, 0));
  EXPECT_THAT(Encode(bpe, {"aaaaaaa"}), ElementsAre(7, 6, 0));
}

TEST_F(BpeTest, PiecesStayApartAndRepeatAlike) {
  Bpe bpe(&vocabulary_, {});
  ASSERT_TRUE(bpe.AddMerge("a", "b").ok());
  EXPECT_THAT(Encode(bpe, {"a", "b", "ab", "", "ab", "a"}), ElementsAre(0, 1, 3, 3, 0));
}

TEST_F(BpeTest, IgnoresMergesForWholePiecesWhenTold) {
  Bpe bpe(&vocabulary_, {.ignore_merges = true});
  EXPECT_THAT(Encode(bpe, {"abc", "abca"}), ElementsAre(5, 0, 1, 2, 0));
}

TEST_F(BpeTest, RefusesMergesOfWhatIsNotThere) {
  Bpe bpe(&vocabulary_, {});
  for (const auto& [left, right, fault] :
       {std::tuple("x", "a", "left part"), std::tuple("a", "x", "right part"),
        std::tuple("c", "c", "result")}) {
    const absl::Status status = bpe.AddMerge(left, right);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(fault));
  }
}

TEST_F(BpeTest, UnknownCharactersFuseOrFallBackToBytes) {
  ASSERT_TRUE(vocabulary_.Put(8, "<unk>", TokenKind::kUnknown).ok());
  ASSERT_TRUE(vocabulary_.Put(9, "<0xC3>", TokenKind::kByte).ok());
  ASSERT_TRUE(vocabulary_.Put(10, "<0xA9>", TokenKind::kByte).ok());
  const std::string text = "a\xC3\xA9\xC3\xA8z";  // e acute has both bytes, e grave and z have not
  EXPECT_THAT(Encode(Bpe(&vocabulary_, {.unknown = 8}), {text}), ElementsAre(0, 8));
  EXPECT_THAT(Encode(Bpe(&vocabulary_, {.fuse_unknown = false, .unknown = 8}), {text}),
              ElementsAre(0, 8, 8, 8));
  EXPECT_THAT(Encode(Bpe(&vocabulary_, {.byte_fallback = true, .unknown = 8}), {text}),
              ElementsAre(0, 9, 10, 8));
  EXPECT_THAT(Encode(Bpe(&vocabulary_, {}), {text}), ElementsAre(0));
}

TEST(ScoredBpe, MergesTheBestPieceFirst) {
  Vocabulary vocabulary(Spelling::kMarkedSpaces);
  int32_t id = 0;
  for (const auto& [text, score] : {std::pair("a", 0.f), std::pair("b", 0.f), std::pair("c", 0.f),
                                    std::pair("ab", -2.f), std::pair("bc", -1.f)}) {
    ASSERT_TRUE(vocabulary.Put(id++, text, TokenKind::kNormal, score).ok());
  }
  EXPECT_THAT(Encode(Bpe(&vocabulary, {.by_score = true}), {"abc"}), ElementsAre(0, 4));
}

TEST(ScoredBpe, UnusedPiecesComeApartAgain) {
  Vocabulary vocabulary(Spelling::kMarkedSpaces);
  int32_t id = 0;
  for (const char* text : {"a", "b", "c"}) {
    ASSERT_TRUE(vocabulary.Put(id++, text, TokenKind::kNormal, 0).ok());
  }
  ASSERT_TRUE(vocabulary.Put(3, "ab", TokenKind::kUnused, -1).ok());
  ASSERT_TRUE(vocabulary.Put(4, "abc", TokenKind::kNormal, -2).ok());
  const Bpe bpe(&vocabulary, {.by_score = true});
  EXPECT_THAT(Encode(bpe, {"abc"}), ElementsAre(4));
  EXPECT_THAT(Encode(bpe, {"abb"}), ElementsAre(0, 1, 1));
}

TEST(ScoredBpe, NeverBuildsAControlToken) {
  Vocabulary vocabulary(Spelling::kMarkedSpaces);
  ASSERT_TRUE(vocabulary.Put(0, "<", TokenKind::kNormal, 0).ok());
  ASSERT_TRUE(vocabulary.Put(1, "s>", TokenKind::kNormal, 0).ok());
  ASSERT_TRUE(vocabulary.Put(2, "<s>", TokenKind::kControl, 0).ok());
  ASSERT_TRUE(vocabulary.Put(3, "s", TokenKind::kNormal, 0).ok());
  ASSERT_TRUE(vocabulary.Put(4, ">", TokenKind::kNormal, 0).ok());
  EXPECT_THAT(Encode(Bpe(&vocabulary, {.by_score = true}), {"<s>"}), ElementsAre(0, 1));
}

TEST(Unigram, TakesTheMostProbableCut) {
  Vocabulary vocabulary(Spelling::kMarkedSpaces);
  int32_t id = 0;
  ASSERT_TRUE(vocabulary.Put(id++, "<unk>", TokenKind::kUnknown).ok());
  for (const auto& [text, score] :
       {std::pair("a", -2.f), std::pair("b", -2.f), std::pair("c", -2.f), std::pair("ab", -3.f),
        std::pair("bc", -2.5f)}) {
    ASSERT_TRUE(vocabulary.Put(id++, text, TokenKind::kNormal, score).ok());
  }
  const Unigram unigram(&vocabulary, 0, false);
  EXPECT_THAT(Encode(unigram, {"abc"}), ElementsAre(1, 5));
  EXPECT_THAT(Encode(unigram, {"ab"}), ElementsAre(4));
  EXPECT_THAT(Encode(unigram, {"axyb"}), ElementsAre(1, 0, 2));  // one unknown for both
}

TEST(Vocabulary, RefusesIdsThatCannotBe) {
  Vocabulary vocabulary(Spelling::kPlain);
  EXPECT_TRUE(vocabulary.Put(0, "a", TokenKind::kNormal).ok());
  EXPECT_TRUE(vocabulary.Put(0, "a", TokenKind::kControl).ok());
  EXPECT_EQ(vocabulary.kind(0), TokenKind::kControl);
  for (const auto& [id, text] : {std::pair(-1, "b"), std::pair(1 << 30, "b"), std::pair(0, "b")}) {
    EXPECT_EQ(vocabulary.Put(id, text, TokenKind::kNormal).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(vocabulary.Put(5, "<0xZZ>", TokenKind::kByte).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace keyline
