// Which files a model is made of.
#include "runtime/files/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/runtime/files/gguf_bytes.h"
#include "tests/runtime/files/safetensors_bytes.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string OneTensor(const std::string& name) {
  return SafetensorsBytes("{\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                          1);
}

TEST(Checkpoint, GoldenDirectoryOpens) {
  const auto checkpoint = OpenCheckpoint("tests/golden/dense/llama");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->gguf, nullptr);
  EXPECT_EQ((*checkpoint->config)["model_type"], "llama");
  EXPECT_EQ(checkpoint->generation_config, nullptr);
  EXPECT_TRUE(checkpoint->weights->Contains("model.layers.2.mlp.up_proj.weight"));
  EXPECT_FALSE(checkpoint->weights->Contains("logits"));  // of expected.safetensors beside it
}

TEST(Checkpoint, ADirectoryMeansItsModelFileOrItsIndex) {
  const TempDir dir;
  dir.Write("config.json", "{}");
  dir.Write("generation_config.json", R"({"eos_token_id":3})");
  dir.Write("other.safetensors", OneTensor("other"));
  EXPECT_EQ(OpenCheckpoint(dir.path()).status(),
            absl::NotFoundError(dir.path() + ": has neither model.safetensors nor "
                                             "model.safetensors.index.json; weights in other "
                                             "formats must be converted first"));
  dir.Write("model.safetensors.index.json", R"({"weight_map":{"other":"other.safetensors"}})");
  EXPECT_THAT(OpenCheckpoint(dir.path())->weights->names(), ElementsAre("other"));
  dir.Write("model.safetensors", OneTensor("whole"));
  const auto checkpoint = OpenCheckpoint(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->weights->names(), ElementsAre("whole"));
  EXPECT_EQ((*checkpoint->generation_config)["eos_token_id"], 3);
}

TEST(Checkpoint, GgufIsToldByItsContent) {
  const TempDir dir;
  const std::string path = dir.Write(
      "model.bin", GgufBytes({Pair("general.architecture", std::string("llama"))}, {}, ""));
  const auto checkpoint = OpenCheckpoint(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->gguf, checkpoint->weights.get());
  EXPECT_EQ(checkpoint->config, nullptr);
}

TEST(Checkpoint, BadOnesGiveExactErrors) {
  const TempDir dir;
  const std::string hint = " (a model is a Hugging Face directory or a .gguf file)";
  EXPECT_EQ(OpenCheckpoint(dir.Path("none")).status(),
            absl::NotFoundError("model " + dir.Path("none") +
                                ": cannot open: No such file or directory" + hint));
  const std::string file = dir.Write("model.safetensors", OneTensor("a"));
  EXPECT_EQ(OpenCheckpoint(file).status(),
            absl::InvalidArgumentError("model " + file +
                                       ": byte 0: is not a GGUF file: it does not begin with "
                                       "'GGUF'" +
                                       hint));
  EXPECT_EQ(
      OpenCheckpoint(dir.path()).status(),
      absl::NotFoundError(dir.Path("config.json") + ": cannot open: No such file or directory"));
  dir.Write("config.json", "[]");
  EXPECT_EQ(
      OpenCheckpoint(dir.path()).status(),
      absl::InvalidArgumentError(dir.Path("config.json") + ": must hold a JSON object, got array"));
  dir.Write("config.json", "{");
  EXPECT_THAT(std::string(OpenCheckpoint(dir.path()).status().message()),
              HasSubstr("config.json: not valid JSON at byte 1"));
}

}  // namespace
}  // namespace keyline
