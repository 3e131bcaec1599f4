// Deployment files: those in configs/ are read; errors name line and column.
#include "runtime/config/deployment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace keyline {
namespace {

using ::testing::ElementsAre;

TEST(Deployment, EveryShippedFileIsReadAndSaysForWhom) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs")) {
    if (entry.path().extension() != ".pbtxt") continue;
    ++files;
    const auto deployment = LoadDeployment(entry.path().string());
    EXPECT_TRUE(deployment.ok()) << deployment.status();
    std::ifstream file(entry.path());
    std::string first;
    std::getline(file, first);
    EXPECT_EQ(first.substr(0, 6), "# For ") << entry.path();
  }
  EXPECT_GE(files, 3);
}

TEST(Deployment, WhatIsNotSetIsNotThere) {
  const auto deployment = ParseDeployment(
      "model: 'm' lanes: 0 device: 'cuda:0' device: 'cuda:1'\n"
      "cache { cache_length: [512, 1024] sinks: 0 storage: 'int8' }",
      "x.pbtxt");
  ASSERT_TRUE(deployment.ok()) << deployment.status();
  EXPECT_TRUE(deployment->has_lanes());
  EXPECT_FALSE(deployment->has_ranks());
  EXPECT_FALSE(deployment->has_server());
  EXPECT_THAT(deployment->device(), ElementsAre("cuda:0", "cuda:1"));
  EXPECT_THAT(deployment->cache().cache_length(), ElementsAre(512, 1024));
  EXPECT_TRUE(deployment->cache().has_sinks());
  EXPECT_FALSE(deployment->cache().has_grace());
}

TEST(Deployment, ErrorsNameLineAndColumn) {
  const auto error = [](const char* text) { return ParseDeployment(text, "x.pbtxt").status(); };
  EXPECT_EQ(error("model: 'm'\ncache {\n  colour: 3\n}"),
            absl::InvalidArgumentError("x.pbtxt:3:9: Message type \"keyline.config.Cache\" has no "
                                       "field named \"colour\"."));
  EXPECT_EQ(error("lanes: many"),
            absl::InvalidArgumentError("x.pbtxt:1:8: Expected integer, got: many"));
  EXPECT_EQ(error("lanes: 1\nlanes: 2"),
            absl::InvalidArgumentError(
                "x.pbtxt:2:6: Non-repeated field \"lanes\" is specified multiple times."));
  EXPECT_EQ(error("lanes: 4294967296"),
            absl::InvalidArgumentError("x.pbtxt:1:8: Integer out of range (4294967296)"));
  EXPECT_EQ(error("cache {").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error("model: 'm\n'").code(), absl::StatusCode::kInvalidArgument);
}

TEST(Deployment, MissingFileIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(LoadDeployment("configs/none.pbtxt").status()));
}

}  // namespace
}  // namespace keyline
