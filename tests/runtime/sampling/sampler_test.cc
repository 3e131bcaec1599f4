#include "runtime/sampling/sampler.h"

#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "gtest/gtest.h"

namespace keyline {
namespace {

class SamplerTest : public ::testing::Test {
 protected:
  SamplerTest()
      : device_(*OpenDevice("cpu", {.threads = 1})),
        stream_(device_->NewStream()),
        sampler_(*Sampler::Make(*device_, 3, 4)) {}

  // Of one step.
  std::span<const SampledToken> Draw(TensorView logits, const int32_t* lanes,
                                     const int32_t* positions) {
    const int place = sampler_.TakePlace();
    const int32_t first_row = sampler_.FirstRow(place);
    sampler_.Sample(*stream_, logits, lanes, positions, &first_row);
    sampler_.Mark(*stream_, place, static_cast<int>(logits.rows()));
    return sampler_.Fetched(*stream_, place);
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  Sampler sampler_;
};

TEST_F(SamplerTest, EveryRowFollowsItsLane) {
  sampler_.SetLane(*stream_, 0, {});  // greedy
  sampler_.SetLane(*stream_, 2, {.temperature = 1.0f, .seed = 5});
  std::vector<float> logits = {0, 3, 1, 2, 0, 0, 0, 0};
  const TensorView view = MakeView(logits.data(), DType::kF32, {2, 4});
  const int32_t lanes[] = {0, 2};
  std::vector<int> counts(4, 0);
  for (int32_t position = 0; position < 400; ++position) {
    const int32_t positions[] = {position, position};
    const auto sampled = Draw(view, lanes, positions);
    ASSERT_EQ(sampled.size(), 2u);
    EXPECT_EQ(sampled[0].token, 1);
    ASSERT_GE(sampled[1].token, 0);
    ++counts[sampled[1].token];
    EXPECT_NEAR(sampled[1].logprob, -std::log(4.0f), 1e-6);
  }
  for (int count : counts) EXPECT_GT(count, 60) << "all four tokens are equally likely";
  // The same key draws the same token.
  const int32_t positions[] = {7, 7};
  const auto draw = [&] { return Draw(view, lanes, positions)[1].token; };
  EXPECT_EQ(draw(), draw());
}

// A step is launched before the one before has been heard of.
TEST_F(SamplerTest, WhatTwoStepsDrawDoesNotMix) {
  sampler_.SetLane(*stream_, 0, {});
  const int32_t lanes[] = {0, 0, 0, 0};
  const int32_t positions[] = {0, 0, 0, 0};
  std::vector<int> places;
  const auto launch = [&](int token) {
    std::vector<float> logits(16, 0);
    for (int row = 0; row < 4; ++row) logits[row * 4 + (token + row) % 4] = 1;
    places.push_back(sampler_.TakePlace());
    const int32_t first_row = sampler_.FirstRow(places.back());
    sampler_.Sample(*stream_, MakeView(logits.data(), DType::kF32, {4, 4}), lanes, positions,
                    &first_row);
    sampler_.Mark(*stream_, places.back(), 4);
  };
  launch(0);
  for (int step = 1; step < 6; ++step) {
    launch(step);
    const auto sampled = sampler_.Fetched(*stream_, places[step - 1]);
    ASSERT_EQ(sampled.size(), 4u);
    for (int row = 0; row < 4; ++row) EXPECT_EQ(sampled[row].token, (step - 1 + row) % 4);
  }
}

TEST_F(SamplerTest, TopAndTargetLogProbs) {
  std::vector<float> logits = {0, 3, 1, 3, -1, 2, 0, 0};
  const TensorView view = MakeView(logits.data(), DType::kF32, {2, 4});
  const auto top = sampler_.Top(*stream_, view, 2);
  EXPECT_EQ(top[0].tokens, (std::vector<int32_t>{1, 3})) << "the lowest id first among equals";
  EXPECT_EQ(top[1].tokens, (std::vector<int32_t>{1, 2}));
  const int32_t targets[] = {3, -1};
  const auto logprobs = sampler_.LogProbs(*stream_, view, targets);
  EXPECT_NEAR(logprobs[0], top[0].logprobs[1], 1e-6);
  EXPECT_EQ(logprobs[1], 0.0f);
}

}  // namespace
}  // namespace keyline
