// Files that are no vocabulary we can use: the error says which field of which file and what would
// work.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/text/tokenizer.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string ReadAll(const std::string& path) {
  std::ifstream file("tests/golden/text/" + path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Broken {
  const char* name;
  std::function<void(json&)> edit;
  absl::StatusCode code;
  std::vector<const char*> says;
};

void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }

class BrokenJson : public testing::TestWithParam<Broken> {};

TEST_P(BrokenJson, IsRefusedByField) {
  json document = json::parse(ReadAll("gpt2/tokenizer.json"));
  GetParam().edit(document);
  TempDir directory;
  directory.Write("tokenizer.json", document.dump());
  const absl::Status status = LoadTokenizer(directory.path()).status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json"));
  for (const char* part : GetParam().says) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    All, BrokenJson,
    testing::Values(
        Broken{"NoModel", [](json& j) { j.erase("model"); }, kInvalid, {"model is missing"}},
        Broken{"Unigram",
               [](json& j) { j["model"]["type"] = "Unigram"; },
               kUnimplemented,
               {"model.type \"Unigram\"", "BPE is"}},
        Broken{"Normalizer",
               [](json& j) {
                 j["normalizer"] = {{"type", "Lowercase"}};
               },
               kUnimplemented,
               {"normalizer of type \"Lowercase\"", "NFC, Prepend, Replace"}},
        Broken{"NestedNormalizer",
               [](json& j) {
                 j["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFKD"}}}}};
               },
               kUnimplemented,
               {"normalizer.normalizers[0] of type \"NFKD\""}},
        Broken{"PreTokenizer",
               [](json& j) {
                 j["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
               },
               kUnimplemented,
               {"pre_tokenizer of type \"BertPreTokenizer\"", "Split"}},
        Broken{"AfterByteLevel",
               [](json& j) {
                 j["pre_tokenizer"] = {
                     {"type", "Sequence"},
                     {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}};
               },
               kUnimplemented,
               {"pretokenizers[1]", "must be the last"}},
        Broken{"OnlyOneByteLevel",
               [](json& j) { j["decoder"] = nullptr; },
               kUnimplemented,
               {"decoder", "ByteLevel"}},
        Broken{"Decoder",
               [](json& j) {
                 j["decoder"] = {{"type", "WordPiece"}};
               },
               kUnimplemented,
               {"decoder of type \"WordPiece\""}},
        Broken{"PostProcessor",
               [](json& j) {
                 j["post_processor"] = {{"type", "BertProcessing"}};
               },
               kUnimplemented,
               {"post_processor of type \"BertProcessing\""}},
        Broken{"Expression",
               [](json& j) {
                 j["pre_tokenizer"] = {
                     {"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
               },
               kInvalid,
               {"pre_tokenizer", "\"(a\"", "offset 2"}},
        Broken{"NoType",
               [](json& j) { j["pre_tokenizer"] = json::object(); },
               kInvalid,
               {"pre_tokenizer.type is missing"}},
        Broken{"WrongType",
               [](json& j) { j["model"]["byte_fallback"] = 1; },
               kInvalid,
               {"model.byte_fallback is a number"}},
        Broken{"EmptyVocab",
               [](json& j) { j["model"]["vocab"] = json::object(); },
               kInvalid,
               {"model.vocab is empty"}},
        Broken{"NegativeId",
               [](json& j) { j["model"]["vocab"]["zz"] = -1; },
               kInvalid,
               {"model.vocab['zz']", "negative"}},
        Broken{"HugeId",
               [](json& j) { j["model"]["vocab"]["zz"] = 2000000000; },
               kInvalid,
               {"2000000000", "zz"}},
        Broken{"IdTwice",
               [](json& j) { j["model"]["vocab"]["zz"] = 5; },
               kInvalid,
               {"id 5 is given twice"}},
        Broken{"TextAsId",
               [](json& j) { j["model"]["vocab"]["zz"] = "5"; },
               kInvalid,
               {"model.vocab['zz'] is a text"}},
        Broken{"MergeOfThree",
               [](json& j) {
                 j["model"]["merges"][1] = {"a", "b", "c"};
               },
               kInvalid,
               {"model.merges[1]", "more than two"}},
        Broken{"MergeOfOne",
               [](json& j) { j["model"]["merges"][2] = "ab"; },
               kInvalid,
               {"model.merges[2]", "no pair"}},
        Broken{"MergeOfNumbers",
               [](json& j) { j["model"]["merges"][0] = 7; },
               kInvalid,
               {"model.merges[0] is a number"}},
        Broken{"MergeOfStrangers",
               [](json& j) { j["model"]["merges"][3] = "zz yy"; },
               kInvalid,
               {"merge 3", "\"zz\"", "not in the vocabulary"}},
        Broken{"Unknown",
               [](json& j) { j["model"]["unk_token"] = "<nope>"; },
               kInvalid,
               {"model.unk_token \"<nope>\""}},
        Broken{"Suffix",
               [](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; },
               kUnimplemented,
               {"end_of_word_suffix \"</w>\""}},
        Broken{"AddedConflict",
               [](json& j) { j["added_tokens"][0]["content"] = "<|other|>"; },
               kInvalid,
               {"added_tokens", "id 0 is given twice"}},
        Broken{"BosNotThere",
               [](json& j) {
                 j["post_processor"] = {{"type", "TemplateProcessing"},
                                        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}},
                                        {"special_tokens", {{"<s>", {{"ids", {99999}}}}}}};
               },
               kInvalid,
               {"post_processor", "99999"}}),
    [](const auto& info) { return info.param.name; });

TEST(BrokenVocabulary, SaysWhereNothingIs) {
  TempDir directory;
  EXPECT_TRUE(absl::IsNotFound(LoadTokenizer(directory.path()).status()));
  EXPECT_THAT(std::string(LoadTokenizer(directory.path()).status().message()),
              HasSubstr("neither tokenizer.json nor tokenizer.model"));
  EXPECT_TRUE(absl::IsNotFound(LoadTokenizer(directory.Path("missing.gguf")).status()));
}

TEST(BrokenVocabulary, NeighboursAreChecked) {
  TempDir directory;
  directory.Write("tokenizer.json", ReadAll("gpt2/tokenizer.json"));
  ASSERT_TRUE(LoadTokenizer(directory.path()).ok());
  directory.Write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<nope>"})");
  EXPECT_THAT(std::string(LoadTokenizer(directory.path()).status().message()),
              HasSubstr("bos_token \"<nope>\""));
  directory.Write("tokenizer_config.json", R"({"chat_template": 7})");
  EXPECT_THAT(std::string(LoadTokenizer(directory.path()).status().message()),
              HasSubstr("chat_template is a number"));
}

TEST(Neighbours, SayBosEosAndTemplate) {
  TempDir directory;
  directory.Write("tokenizer.json", ReadAll("llama3/tokenizer.json"));
  directory.Write("tokenizer_config.json",
                  R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template":
                     [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]})");
  auto tokenizer = *LoadTokenizer(directory.path());
  EXPECT_EQ(tokenizer->bos_id(), tokenizer->Find("<s>"));
  EXPECT_THAT(tokenizer->eos_ids(),
              testing::ElementsAre(tokenizer->Find("</s>"), tokenizer->Find("<|im_end|>")));
  EXPECT_EQ(tokenizer->chat_template(), "d");
  EXPECT_EQ(tokenizer->Encode("", {})->size(), 1u);
  EXPECT_EQ(tokenizer->Encode("", {.add_bos = false})->size(), 0u);

  directory.Write("chat_template.jinja", "of its own");
  directory.Write("generation_config.json", R"({"eos_token_id": [3, 1, 999999]})");
  directory.Write("tokenizer_config.json", R"({"add_bos_token": false})");
  tokenizer = *LoadTokenizer(directory.path());
  EXPECT_EQ(tokenizer->chat_template(), "of its own");
  EXPECT_THAT(tokenizer->eos_ids(), testing::ElementsAre(3, 1));
  EXPECT_EQ(tokenizer->Encode("", {})->size(), 0u);
}

TEST(SentencePieceFile, TakesAddedTokensFromItsNeighbour) {
  TempDir directory;
  directory.Write("tokenizer.model", ReadAll("bpe-bytes/tokenizer.model"));
  directory.Write("tokenizer_config.json", R"({"added_tokens_decoder": {
      "1": {"content": "<s>", "special": true},
      "600": {"content": "<|im_end|>", "special": true},
      "601": {"content": "<think>", "special": false}}})");
  const auto tokenizer = *LoadTokenizer(directory.path());
  EXPECT_EQ(tokenizer->vocab_size(), 602);
  EXPECT_THAT(*tokenizer->Encode("<|im_end|><think>", {.parse_special = true}),
              testing::ElementsAre(1, 600, 601));
  EXPECT_THAT(*tokenizer->Encode("<think>", {}), testing::ElementsAre(1, 601));
  EXPECT_THAT(tokenizer->eos_ids(), testing::ElementsAre(2, 600));
}

// Cut or changed anywhere, a file gives an error or a vocabulary; nothing else.
TEST(BrokenVocabulary, SurvivesCutsAndChanges) {
  for (const char* file :
       {"bpe-nfkc/tokenizer.model", "unigram-nfkc/tokenizer.model", "gguf-smollm/model.gguf",
        "gguf-llama/model.gguf", "split-removed/tokenizer.json"}) {
    const std::string whole = ReadAll(file);
    ASSERT_FALSE(whole.empty());
    const std::string name = std::filesystem::path(file).filename();
    TempDir directory;
    const std::string path = name == "model.gguf" ? directory.Path(name) : directory.path();
    uint32_t random = 1;
    for (int round = 0; round < 60; ++round) {
      random = random * 1664525 + 1013904223;
      std::string bytes = whole;
      const size_t at = (random >> 4) % bytes.size();
      if (round % 3 == 0) {
        bytes.resize(at);
      } else {
        bytes[at] = static_cast<char>(random >> 24);
      }
      directory.Write(name, bytes);
      const auto tokenizer = LoadTokenizer(path);
      if (!tokenizer.ok()) {
        EXPECT_FALSE(tokenizer.status().message().empty());
        continue;
      }
      const auto ids = (*tokenizer)->Encode("light \xC3\xA9 <s> 123", {.parse_special = true});
      if (ids.ok()) Decode(**tokenizer, *ids);
    }
  }
}

TEST(BrokenGguf, NamesTheKey) {
  const std::string whole = ReadAll("gguf-smollm/model.gguf");
  const auto with = [&](std::string_view from, std::string_view to) {
    std::string bytes = whole;
    bytes.replace(bytes.find(from), from.size(), to);
    TempDir directory;
    return LoadTokenizer(directory.Write("model.gguf", bytes)).status();
  };
  EXPECT_THAT(std::string(with("gpt2", "bert").message()),
              HasSubstr("tokenizer.ggml.model 'bert'"));
  EXPECT_THAT(std::string(with("smollm", "viking").message()),
              testing::AllOf(HasSubstr("tokenizer.ggml.pre"), HasSubstr("qwen2")));
  EXPECT_THAT(std::string(with("tokenizer.ggml.merges", "tokenizer.ggml.merxes").message()),
              HasSubstr("tokenizer.ggml.merges"));
  EXPECT_THAT(std::string(with("tokenizer.ggml.tokens", "tokenizer.ggml.tokxns").message()),
              HasSubstr("tokenizer.ggml.tokens"));
}

}  // namespace
}  // namespace keyline
