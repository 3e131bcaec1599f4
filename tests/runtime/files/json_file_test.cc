// JSON within limits: one exact error for each class of bad text.
#include "runtime/files/json_file.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/runtime/files/mutate.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

constexpr JsonLimits kSmall = {.max_bytes = 1000, .max_depth = 4, .max_values = 10};

std::string Repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

struct BadText {
  std::string name;
  std::string text;
  std::string message;  // after the name
};

std::ostream& operator<<(std::ostream& out, const BadText& bad) { return out << bad.name; }

std::vector<BadText> BadTexts() {
  const std::string value = "not valid JSON at byte ";
  return {
      {"Empty", "",
       value +
           "0: syntax error while parsing value - unexpected end of input; expected '[', '{', or "
           "a literal"},
      {"Word", "hello", value + "0: syntax error while parsing value - invalid literal"},
      {"TrailingText", "{} {}",
       value + "3: syntax error while parsing value - unexpected '{'; expected end of input"},
      {"TrailingComma", "[1,]",
       value + "3: syntax error while parsing value - unexpected ']'; expected '[', '{', or a "
               "literal"},
      {"Comment", "[1 /* one */]", value + "3: syntax error while parsing array - invalid literal"},
      {"Infinity", "[Infinity]", value + "1: syntax error while parsing value - invalid literal"},
      {"NumberOverflow", "[1e400]", value + "5: number '1e400' is out of range"},
      {"LoneSurrogate", R"(["\ud800"])",
       value +
           "8: syntax error while parsing value - invalid string: surrogate U+D800..U+DBFF must "
           "be followed by U+DC00..U+DFFF"},
      {"LowSurrogate", R"(["\udc00x"])",
       value +
           "7: syntax error while parsing value - invalid string: surrogate U+DC00..U+DFFF must "
           "follow U+D800..U+DBFF"},
      {"NotUtf8", "[\"a\xff\"]",
       value + "3: syntax error while parsing value - invalid string: ill-formed UTF-8 byte"},
      {"RawNul", std::string("[\"a\0\"]", 6),
       value +
           "3: syntax error while parsing value - invalid string: control character U+0000 (NUL) "
           "must be escaped to \\u0000"},
      {"EscapedNul", R"({"a":"x\u0000z"})", "string 'x\\x00z' contains NUL"},
      {"NulInKey", R"({"x\u0000z":1})", "string 'x\\x00z' contains NUL"},
      {"DuplicateKey", R"({"a":1,"b":2,"a":1})", "key 'a' stands twice in one object"},
      {"TooDeep", "[[[[[]]]]]", "is nested deeper than 4"},
      {"TooDeepObjects", R"({"a":{"a":{"a":{"a":{}}}}})", "is nested deeper than 4"},
      {"TooManyValues", "[1,2,3,4,5,6,7,8,9,10]", "has more than 10 values"},
      {"TooLong", std::string(1001, ' '), "has 1001 bytes, at most 1000 are read"},
  };
}

class BadJson : public ::testing::TestWithParam<BadText> {};

TEST_P(BadJson, GivesOneExactError) {
  const absl::Status status = ParseJson(GetParam().text, "x.json", kSmall).status();
  EXPECT_EQ(status, absl::InvalidArgumentError("x.json: " + GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Classes, BadJson, ::testing::ValuesIn(BadTexts()),
                         [](const auto& info) { return info.param.name; });

TEST(JsonFile, ReadsWhatIsSound) {
  const auto json =
      ParseJson(R"({"a":[1,-2,2.5,true,null,"x\u00e9\ud83d\ude00"],"b":{}})", "x", kConfigJson);
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["a"][0].get<uint64_t>(), 1u);
  EXPECT_EQ((*json)["a"][1].get<int>(), -2);
  EXPECT_EQ((*json)["a"][2].get<double>(), 2.5);
  EXPECT_TRUE((*json)["a"][4].is_null());
  EXPECT_EQ((*json)["a"][5].get<std::string>(), "x\u00e9\U0001F600");
  EXPECT_TRUE((*json)["b"].is_object());
  EXPECT_EQ(ParseJson("17", "x", kConfigJson)->get<int>(), 17);
}

TEST(JsonFile, DepthOfSixtyFourIsTheLimit) {
  const auto nested = [](int depth) { return Repeat("[", depth) + Repeat("]", depth); };
  EXPECT_TRUE(ParseJson(nested(64), "x", kConfigJson).ok());
  EXPECT_EQ(ParseJson(nested(65), "x", kConfigJson).status(),
            absl::InvalidArgumentError("x: is nested deeper than 64"));
  EXPECT_EQ(ParseJson(Repeat("[", 100'000), "x", kConfigJson).status(),
            absl::InvalidArgumentError("x: is nested deeper than 64"));
}

TEST(JsonFile, AVocabularyMayHoldNul) {
  EXPECT_TRUE(ParseJson(R"({"\u0000":1})", "x", kTokenizerJson).ok());
}

TEST(JsonFile, FilesAreBoundedBeforeTheyAreRead) {
  const TempDir dir;
  const std::string path = dir.Write("config.json", std::string((1 << 20) + 1, ' '));
  EXPECT_EQ(ReadJsonFile(path, kConfigJson).status(),
            absl::InvalidArgumentError(path + ": has 1048577 bytes, at most 1048576 are read"));
  EXPECT_TRUE(absl::IsNotFound(ReadJsonFile(dir.Path("none.json"), kConfigJson).status()));
}

TEST(JsonFile, DamagedTextsEndInAStatus) {
  const std::string sound =
      R"({"model":{"vocab":{"a":0,"\u0120b":1},"merges":[["a","b"],["c","d"]]},"x":[1.5e3,-2,null]})";
  int read = 0;
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const auto json = ParseJson(Mutate(sound, seed), "x.json", kConfigJson);
    if (json.ok()) {
      ++read;
    } else {
      EXPECT_EQ(json.status().message().substr(0, 8), "x.json: ") << seed;
    }
  }
  EXPECT_GT(read, 50);
  EXPECT_LT(read, 4000);
}

}  // namespace
}  // namespace keyline
