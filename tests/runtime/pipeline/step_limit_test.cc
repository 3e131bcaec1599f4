#include "runtime/pipeline/step_limit.h"

#include <gtest/gtest.h>

namespace keyline {
namespace {

TEST(StepLimitTest, IsPatientWithTheFirstStep) {
  const StepLimit limit;
  EXPECT_EQ(limit.For(1), absl::Seconds(60.2));
  EXPECT_EQ(limit.For(512), absl::Seconds(162.4));
}

TEST(StepLimitTest, FiveSecondsWhereStepsAreFast) {
  StepLimit limit;
  limit.Took(absl::Milliseconds(10), 1);
  EXPECT_EQ(limit.For(1), absl::Seconds(5));
  EXPECT_EQ(limit.For(512), absl::Seconds(5));
}

TEST(StepLimitTest, TwentyTimesTheSlowestScaledByTokens) {
  StepLimit limit;
  limit.Took(absl::Seconds(1), 1);  // a large model on few cores
  EXPECT_NEAR(absl::ToDoubleSeconds(limit.For(1)), 20, 1e-6);
  EXPECT_NEAR(absl::ToDoubleSeconds(limit.For(512)), 20.0 / 65 * (64 + 512), 1e-6);
  limit.Took(absl::Milliseconds(1), 1);  // a fast one changes nothing
  EXPECT_NEAR(absl::ToDoubleSeconds(limit.For(1)), 20, 1e-6);
}

TEST(StepLimitTest, MoreWhereStatesTravel) {
  StepLimit limit;
  EXPECT_EQ(limit.For(1, true), absl::Seconds(120.2));
  limit.Took(absl::Milliseconds(10), 1);
  EXPECT_EQ(limit.For(1, true), absl::Seconds(65));
}

}  // namespace
}  // namespace keyline
