#include "runtime/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

namespace keyline {
namespace {

// All of a stream: what was shown and which stop ended it ("" for none).
std::pair<std::string, std::string> Shown(const std::vector<std::string>& stops,
                                          const std::vector<std::string>& parts) {
  StopMatcher matcher(stops);
  std::string shown;
  for (const std::string& part : parts) {
    auto result = matcher.Push(part);
    shown += result.text;
    if (result.match) {
      EXPECT_EQ(matcher.Push("more").text, "");
      EXPECT_EQ(matcher.Flush(), "");
      return {shown, *result.match};
    }
  }
  return {shown + matcher.Flush(), ""};
}

using Outcome = std::pair<std::string, std::string>;

TEST(StopMatcher, FindsAStopAcrossParts) {
  EXPECT_EQ(Shown({"<end>"}, {"text<", "e", "nd", ">tail"}), Outcome("text", "<end>"));
}

TEST(StopMatcher, ShowsTextAsSoonAsItIsNoStop) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Push("a st").text, "a ");
  EXPECT_EQ(matcher.Push("st").text, "st");  // "st" is out, the new one may still become a stop
  EXPECT_EQ(matcher.Push("ore").text, "store");
  EXPECT_EQ(matcher.Push("sto").text, "");
  EXPECT_EQ(matcher.Flush(), "sto");
}

TEST(StopMatcher, ReleasesAllButTheLongestPossibleBeginning) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.Push("aaaa").text, "aa");
  EXPECT_EQ(matcher.Push("a").text, "a");
  const auto result = matcher.Push("b");
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.match, "aab");
}

TEST(StopMatcher, TheMatchThatEndsFirstWins) {
  EXPECT_EQ(Shown({"abcd", "bc"}, {"xabcd"}), Outcome("xa", "bc"));
  EXPECT_EQ(Shown({"b", "a"}, {"xab"}), Outcome("x", "a"));
}

TEST(StopMatcher, OfThoseThatEndTogetherTheLongestWins) {
  EXPECT_EQ(Shown({"c", "bc", "abc"}, {"xa", "bc"}), Outcome("x", "abc"));
  EXPECT_EQ(Shown({"abc", "bc", "c"}, {"xzbc"}), Outcome("xz", "bc"));
}

TEST(StopMatcher, WithoutStopsAllTextPasses) {
  EXPECT_EQ(Shown({}, {"any", "thing"}), Outcome("anything", ""));
}

TEST(StopMatcher, KeepsCharactersWhole) {
  StopMatcher matcher({"\xC3\xA9!"});
  EXPECT_EQ(matcher.Push("caf\xC3\xA9").text, "caf");
  EXPECT_EQ(matcher.Push("\xC3\xA8").text, "\xC3\xA9\xC3\xA8");  // same first byte, no match
}

TEST(StopMatcher, AllByteValues) {
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  EXPECT_EQ(Shown({std::string("\xFF\x00", 2)}, {all, std::string("\x00z", 2)}),
            Outcome(all.substr(0, 255), std::string("\xFF\x00", 2)));
}

TEST(StopMatcherDeathTest, RefusesAnEmptyStop) {
  EXPECT_DEATH(StopMatcher({"a", ""}), "stop string 1 is empty");
}

// Any cut of a stream gives what a plain search of the whole text gives.
TEST(StopMatcher, AgreesWithSearchHoweverTheTextIsCut) {
  std::mt19937 random(3);
  const auto word = [&](int longest) {
    std::string text(1 + random() % longest, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops(1 + random() % 4);
    for (std::string& stop : stops) stop = word(5);
    const std::string text = word(30);
    Outcome want(text, "");
    for (size_t end = 1; end <= text.size() && want.second.empty(); ++end) {
      for (const std::string& stop : stops) {
        if (stop.size() <= end && stop.size() > want.second.size() &&
            text.compare(end - stop.size(), stop.size(), stop) == 0) {
          want = {text.substr(0, end - stop.size()), stop};
        }
      }
    }
    std::vector<std::string> parts;
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + random() % 4;
      parts.push_back(text.substr(at, size));
      at += size;
    }
    ASSERT_EQ(Shown(stops, parts), want) << text;
  }
}

}  // namespace
}  // namespace keyline
