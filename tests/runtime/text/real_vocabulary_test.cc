// Published vocabularies against llama.cpp's ids. The model files are not part of the repository:
// put them into models/ (or $KEYLINE_MODELS), or these tests skip.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/runtime/text/golden_cases.h"

namespace keyline {
namespace {

struct RealModel {
  const char* name;  // of the golden files
  const char* file;
};

std::unique_ptr<Tokenizer> LoadReal(const char* file) {
  const char* directory = std::getenv("KEYLINE_MODELS");
  const std::filesystem::path path =
      std::filesystem::path(directory == nullptr ? "models" : directory) / file;
  if (!std::filesystem::exists(path)) return nullptr;
  auto loaded = LoadTokenizer(path.string());
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? *std::move(loaded) : nullptr;
}

class RealVocabulary : public testing::TestWithParam<RealModel> {};

TEST_P(RealVocabulary, GivesTheIdsOfLlamaCpp) {
  const auto tokenizer = LoadReal(GetParam().file);
  if (tokenizer == nullptr) GTEST_SKIP() << GetParam().file << " is not in models/";
  const auto golden = ReadGolden(std::string("real/") + GetParam().name + "-tokens.json");
  for (const auto& entry : golden.at("strings")) {
    const std::string text = absl::HexStringToBytes(entry.at("text_hex").get<std::string>());
    const auto ids = tokenizer->Encode(text, {.add_bos = false, .parse_special = true});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_THAT(*ids, testing::ElementsAreArray(entry.at("ids").get<std::vector<int32_t>>()))
        << testing::PrintToString(text);
    EXPECT_EQ(Decode(*tokenizer, *ids, /*keep_special=*/true), text);
  }
}

INSTANTIATE_TEST_SUITE_P(All, RealVocabulary,
                         testing::Values(RealModel{"smollm2-135m-instruct",
                                                   "SmolLM2-135M-Instruct.Q4_1.gguf"},
                                         RealModel{"gemma3-270m", "gemma-3-270m-q4_k_m.gguf"}),
                         [](const auto& info) { return info.index == 0 ? "SmolLM2" : "Gemma3"; });

TEST(RealChat, SmolLM2RendersItsTemplate) {
  const auto tokenizer = LoadReal("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (tokenizer == nullptr) GTEST_SKIP() << "SmolLM2-135M-Instruct.Q4_1.gguf is not in models/";
  const auto golden = ReadGolden("real/smollm2-135m-instruct-chats.json");
  for (const auto& chat : golden.at("chats")) {
    // The prompts have the default system message and one question.
    const std::string prompt = chat.at("prompt");
    const std::string begin = "<|im_start|>user\n";
    const size_t from = prompt.find(begin) + begin.size();
    const std::string question = prompt.substr(from, prompt.find("<|im_end|>", from) - from);
    const auto ids = EncodeChat(*tokenizer, {{"user", question}});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_THAT(*ids, testing::ElementsAreArray(chat.at("ids").get<std::vector<int32_t>>()));
    EXPECT_EQ(Decode(*tokenizer, *ids, /*keep_special=*/true), prompt);
  }
}

}  // namespace
}  // namespace keyline
