#include "runtime/sampling/sampler.h"

#include <cmath>
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
    sampler_.Sample(*stream_, view, lanes, positions);
    const auto sampled = sampler_.Fetched(*stream_, sampler_.Fetch(*stream_, view.rows()));
    ASSERT_EQ(sampled.size(), 2u);
    EXPECT_EQ(sampled[0].token, 1);
    ASSERT_GE(sampled[1].token, 0);
    ++counts[sampled[1].token];
    EXPECT_NEAR(sampled[1].logprob, -std::log(4.0f), 1e-6);
  }
  for (int count : counts) EXPECT_GT(count, 60) << "all four tokens are equally likely";
  // The same key draws the same token.
  const int32_t positions[] = {7, 7};
  const auto draw = [&] {
    sampler_.Sample(*stream_, view, lanes, positions);
    return sampler_.Fetched(*stream_, sampler_.Fetch(*stream_, view.rows()))[1].token;
  };
  EXPECT_EQ(draw(), draw());
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
