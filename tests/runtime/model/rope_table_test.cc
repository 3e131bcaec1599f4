#include "runtime/model/rope_table.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/decoder_model.h"

namespace keyline {
namespace {

TEST(RopeTable, HoldsCosinesAndSinesAlsoFarOut) {
  const auto device = OpenDevice("cpu", {.threads = 1});
  ASSERT_TRUE(device.ok());
  const auto stream = (*device)->NewStream();
  RopeConfig config;
  config.theta = 10000;
  constexpr int kDim = 8;
  constexpr int kPositions = 100'001;  // more than one block of the table's making
  const auto table = RopeTable::Make(**device, *stream, config, kDim, kPositions);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->device_bytes(), RopeTable::BytesFor(kDim, kPositions));
  const Rope rope = table->rope();
  EXPECT_EQ(rope.positions, kPositions);
  for (int position : {0, 1, 4095, 4096, 100'000}) {
    for (int i = 0; i < kDim / 2; ++i) {
      const long double angle = position * std::pow(10000.0L, -2.0L * i / kDim);
      const float* pair = rope.table + (int64_t{position} * kDim / 2 + i) * 2;
      EXPECT_NEAR(pair[0], static_cast<double>(std::cos(angle)), 1e-7) << position;
      EXPECT_NEAR(pair[1], static_cast<double>(std::sin(angle)), 1e-7) << position;
    }
  }
}

TEST(ModelRegistry, NamesWhatItKnows) {
  ModelConfig config;
  config.family = "perceptron";
  const auto model = MakeModel(config);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(model.status().message()),
              ::testing::HasSubstr("'perceptron' is not supported; supported: llama, qwen3"));
}

}  // namespace
}  // namespace keyline
