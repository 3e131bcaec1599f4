// Which layers stay and which stream: arithmetic alone.

#include "runtime/pipeline/offload_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

// Ten layers of 100 MiB; 100 MiB of everything else.
StageNeeds TenLayers() {
  StageNeeds needs;
  needs.layers.assign(10, 100 * kMiB);
  needs.ends = 50 * kMiB;
  needs.kv = 30 * kMiB;
  needs.workspace = 19 * kMiB;
  needs.streaming_bytes = 1 * kMiB;
  needs.token_bytes = 1 << 10;
  needs.pass_tokens = 512;
  needs.step_tokens = 2560;
  return needs;
}

TEST(OffloadPlan, AllStayWhereTheyFit) {
  const auto plan = PlanOffload(TenLayers(), Offload::kAuto, 1099 * kMiB);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->streams());
  EXPECT_EQ(plan->streamed_layers(), 0);
  EXPECT_EQ(plan->streamed_bytes, 0u);
  EXPECT_EQ(plan->step_tokens, 512);
  EXPECT_EQ(plan->device.total(), 1099 * kMiB);
}

TEST(OffloadPlan, AsManyStayAsFitBesideTwoSlots) {
  const auto plan = PlanOffload(TenLayers(), Offload::kAuto, 610 * kMiB);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->slots, 2);
  EXPECT_EQ(plan->streamed_layers(), 7);
  EXPECT_EQ(plan->streamed_bytes, 700 * kMiB);
  EXPECT_EQ(plan->step_tokens, 2560) << "2 MiB of hidden states are little";
  EXPECT_EQ(plan->device.weights, 550 * kMiB);
  EXPECT_EQ(plan->device.total(), 602 * kMiB);
  // Those that stay do not come one after the other: each copy has work beside it.
  int run = 0;
  for (const bool streams : plan->streamed) {
    run = streams ? 0 : run + 1;
    EXPECT_LE(run, 1);
  }
}

TEST(OffloadPlan, NeverExceedsTheLimit) {
  StageNeeds needs = TenLayers();
  for (size_t l = 0; l < needs.layers.size(); ++l) needs.layers[l] += l % 3 * 17 * kMiB;
  const size_t least = LeastBytes(needs, 0);
  int stay = -1;
  for (size_t limit = least; limit <= 1400 * kMiB; limit += 3 * kMiB + 11) {
    for (const Offload mode : {Offload::kAuto, Offload::kAll}) {
      const auto plan = PlanOffload(needs, mode, limit);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_LE(plan->device.total(), limit);
      EXPECT_GE(plan->step_tokens, needs.pass_tokens);
      const int staying = 10 - plan->streamed_layers();
      if (mode == Offload::kAll) {
        EXPECT_EQ(staying, 0);
        EXPECT_GE(plan->slots, 2);
      } else {
        EXPECT_GE(staying, stay) << "more memory, fewer layers at " << limit;
        stay = staying;
      }
    }
  }
  EXPECT_EQ(stay, 10);
}

TEST(OffloadPlan, RefusesLessThanTwoSlotsAndSaysWhatItNeeds) {
  const StageNeeds needs = TenLayers();
  EXPECT_EQ(LeastBytes(needs, 0), 300 * kMiB);
  EXPECT_EQ(LeastBytes(needs, 4), 700 * kMiB);
  EXPECT_EQ(LeastBytes(needs, 10), 1099 * kMiB);
  for (const Offload mode : {Offload::kAuto, Offload::kAll}) {
    EXPECT_TRUE(PlanOffload(needs, mode, 300 * kMiB).ok());
    const auto refused = PlanOffload(needs, mode, 300 * kMiB - 1);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(refused.status().message(), HasSubstr("needs 300 MiB"));
    EXPECT_THAT(refused.status().message(), HasSubstr("where 299 MiB are"));
  }
  EXPECT_TRUE(PlanOffload(needs, Offload::kNone, 1099 * kMiB).ok());
  EXPECT_EQ(PlanOffload(needs, Offload::kNone, 1098 * kMiB).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(OffloadPlan, AStepTakesTheCopiesOrTheReadsOrBoth) {
  const StageNeeds needs = TenLayers();
  const OffloadPlan all = *PlanOffload(needs, Offload::kAll, 2000 * kMiB);
  EXPECT_EQ(all.slots, 3);
  const double mib = kMiB;
  EXPECT_DOUBLE_EQ(StepSeconds(all, needs, 50 * mib, {100 * mib, 1100 * mib, true}), 10);
  EXPECT_DOUBLE_EQ(StepSeconds(all, needs, 50 * mib, {100 * mib, 1100 * mib, false}), 11);
  const OffloadPlan none = *PlanOffload(needs, Offload::kNone, 2000 * kMiB);
  EXPECT_DOUBLE_EQ(StepSeconds(none, needs, 50 * mib, {100 * mib, 1100 * mib, true}), 1);
}

}  // namespace
}  // namespace keyline
