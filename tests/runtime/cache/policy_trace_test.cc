// The traces of the design, exactly: slots written and positions after each chunk, with synthetic
// attention mass put in between the operations, without K or V.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "kernels/ops/cache_ops.h"
#include "runtime/cache/cache_registry.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

using testing::ElementsAreArray;

class PolicyTraceTest : public testing::TestWithParam<DeviceUnderTest> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(GetParam()); }
};

// One lane with one KV head; its slot table is copied to and fro.
class TracedLane {
 public:
  TracedLane(const DeviceUnderTest& device, const std::string& name, const LanePolicy& asked,
             int length)
      : bench_(device, 1),
        policy_(*MakePolicy(name)),
        rules_(*policy_->Rules(asked, length)),
        slot_pos_(kSlots, -1) {
    rules_.policy = 0;
    table_ = {.lanes = 1,
              .kv_heads = 1,
              .slots = kSlots,
              .rules = bench_.Array(std::vector<LaneRules>{rules_}),
              .progress = bench_.Array(std::vector<LaneProgress>(1)),
              .slot_pos = bench_.Array(std::vector<int32_t>(kSlots)),
              .scores = bench_.Array(std::vector<float>(kSlots))};
    ops::ClearLane(bench_.stream(), table_, 0);
  }

  // Places and scores a chunk of n; returns the slots whose tokens were given up or, where none
  // were, the slots written.
  std::vector<int32_t> Step(int n) {
    const Chunk chunk{.lane = 0,
                      .first_token = 0,
                      .tokens = n,
                      .first_position = tokens_,
                      .takes_mass = tokens_ > 0,
                      .chunk_tokens = n,
                      .chunk_position = tokens_};
    const Batch batch{.tokens = n,
                      .chunks = 1,
                      .max_chunk_tokens = n,
                      .chunk = bench_.Array(std::vector<Chunk>{chunk}),
                      .token_chunk = bench_.Ints(std::vector<int32_t>(n, 0))};
    const std::vector<int32_t> none(n, -1);
    const Placement placement{bench_.Array(none), bench_.Array(none), bench_.Array(none)};
    policy_->Place(bench_.stream(), placement, batch, table_, 0);
    const std::vector<int32_t> slots = bench_.Read(placement.slots, n);
    const std::vector<int32_t> from = bench_.Read(placement.moved_from, n);
    const std::vector<int32_t> to = bench_.Read(placement.moved_to, n);
    std::vector<float> scores = bench_.Read(table_.scores, kSlots);
    std::vector<int32_t> taken;
    for (int i = 0; i < n; ++i) {
      if (from[i] < 0) continue;
      slot_pos_[to[i]] = slot_pos_[from[i]];
      scores[to[i]] = scores[from[i]];
      taken.push_back(to[i]);
    }
    for (int i = 0; i < n; ++i) {
      slot_pos_[slots[i]] = tokens_ + i;
      scores[slots[i]] = 0;
      const bool in_ring = slots[i] >= rules_.length - rules_.grace;
      if (!in_ring || tokens_ < rules_.length) taken.push_back(slots[i]);
    }
    bench_.Write(table_.slot_pos, slot_pos_);
    bench_.Write(table_.scores, scores);
    // A_j = n w(p_j) / sum w, w(p) = ((7 p + 3) mod 11) + 1
    double sum = 0;
    const auto weight = [](int p) { return p < 0 ? 0 : (7 * p + 3) % 11 + 1; };
    for (int j = 0; j < rules_.length; ++j) sum += weight(slot_pos_[j]);
    std::vector<float> mass(kSlots);
    for (int j = 0; j < rules_.length; ++j) {
      mass[j] = static_cast<float>(n * weight(slot_pos_[j]) / sum);
    }
    policy_->Score(bench_.stream(), table_, bench_.Array(mass), batch, 0);
    ops::AdvanceLanes(bench_.stream(), table_, batch);
    tokens_ += n;
    return taken;
  }

  std::string positions() const {
    std::ostringstream out;
    for (int j = 0; j < rules_.length; ++j) {
      out << (j > 0 ? " " : "");
      if (slot_pos_[j] < 0) {
        out << "-";
      } else {
        out << slot_pos_[j];
      }
    }
    return out.str();
  }
  // As the design counts it: the slot itself.
  int ring_next() {
    return rules_.length - rules_.grace + bench_.Read(table_.progress, 1)[0].ring_next;
  }

 private:
  static constexpr int kSlots = 64;
  Workbench bench_;
  std::unique_ptr<EvictionPolicy> policy_;
  LaneRules rules_;
  std::vector<int32_t> slot_pos_;
  SlotTable table_;
  int tokens_ = 0;
};

struct Expected {
  int tokens;
  std::vector<int32_t> slots;
  std::string positions;  // "": not stated
  int ring_next = -1;
};

void ExpectTrace(TracedLane lane, const std::vector<Expected>& trace) {
  for (const Expected& step : trace) {
    SCOPED_TRACE(testing::Message() << "chunk of " << step.tokens << " for " << step.positions);
    EXPECT_THAT(lane.Step(step.tokens), ElementsAreArray(step.slots));
    if (!step.positions.empty()) {
      EXPECT_EQ(lane.positions(), step.positions);
    }
    if (step.ring_next >= 0) {
      EXPECT_EQ(lane.ring_next(), step.ring_next);
    }
  }
}

const std::vector<int32_t> kFirstEight = {0, 1, 2, 3, 4, 5, 6, 7};

LanePolicy Asked(int grace, double fraction, bool normalize = false) {
  LanePolicy policy;
  policy.grace = grace;
  policy.keep_initial_fraction = fraction;
  policy.normalize_scores = normalize;
  return policy;
}

TEST_P(PolicyTraceTest, LastRecent) {
  LanePolicy asked;
  asked.sinks = 2;
  ExpectTrace(TracedLane(GetParam(), "last_recent", asked, 8),
              {{6, {0, 1, 2, 3, 4, 5}, "0 1 2 3 4 5 - -"},
               {1, {6}, ""},
               {3, {7, 2, 3}, "0 1 8 9 4 5 6 7"},
               {6, {4, 5, 6, 7, 2, 3}, "0 1 14 15 10 11 12 13"},
               {1, {4}, "0 1 14 15 16 11 12 13"}});
}

TEST_P(PolicyTraceTest, LastRecentFillsItsSinksLinearly) {
  LanePolicy asked;
  asked.sinks = 3;
  ExpectTrace(TracedLane(GetParam(), "last_recent", asked, 6), {{1, {0}, "0 - - - - -"},
                                                                {1, {1}, "0 1 - - - -"},
                                                                {4, {2, 3, 4, 5}, "0 1 2 3 4 5"},
                                                                {2, {3, 4}, "0 1 2 6 7 5"}});
}

TEST_P(PolicyTraceTest, ProtectedRangeIsSkippedByTheRing) {
  LanePolicy asked;
  asked.protect_begin = 2;
  asked.protect_end = 5;
  ExpectTrace(TracedLane(GetParam(), "protected_last_recent", asked, 8),
              {{8, kFirstEight, "0 1 2 3 4 5 6 7"},
               {3, {0, 1, 5}, "8 9 2 3 4 10 6 7"},
               {4, {6, 7, 0, 1}, "13 14 2 3 4 10 11 12"}});
  asked.protect_end = 8;  // capped at half of the cache
  ExpectTrace(TracedLane(GetParam(), "protected_last_recent", asked, 8),
              {{8, kFirstEight, ""}, {4, {0, 1, 6, 7}, "8 9 2 3 4 5 10 11"}, {1, {0}, ""}});
}

TEST_P(PolicyTraceTest, ProtectedWithoutARangeIsLastRecent) {
  TracedLane protected_lane(GetParam(), "protected_last_recent", LanePolicy{}, 20);
  TracedLane recent(GetParam(), "last_recent", LanePolicy{}, 20);
  for (int n : {20, 3, 1, 16, 1}) EXPECT_EQ(protected_lane.Step(n), recent.Step(n));
}

TEST_P(PolicyTraceTest, H2oWithoutGrace) {
  ExpectTrace(TracedLane(GetParam(), "h2o", Asked(0, 0.25), 8),
              {{8, kFirstEight, "0 1 2 3 4 5 6 7"},
               {1, {2}, "0 1 8 3 4 5 6 7"},
               {1, {6}, "0 1 8 3 4 5 9 7"},
               {3, {6, 3, 0}, "12 1 8 11 4 5 10 7"},
               {1, {3}, "12 1 8 13 4 5 10 7"},
               {2, {3, 6}, "12 1 8 14 4 5 15 7"}});
}

TEST_P(PolicyTraceTest, H2oWithGrace) {
  ExpectTrace(TracedLane(GetParam(), "h2o", Asked(2, 0.25), 8),
              {{8, kFirstEight, "0 1 2 3 4 5 6 7", 6},
               {1, {2}, "0 1 6 3 4 5 8 7", 7},
               {1, {2}, "0 1 7 3 4 5 8 9", 6},
               {3, {3, 0, 5}, "9 1 7 8 4 10 11 12", 6},
               {1, {0}, "11 1 7 8 4 10 13 12", 7},
               {2, {0, 5}, "12 1 7 8 4 13 15 14", 7}});
}

TEST_P(PolicyTraceTest, H2oWithGraceNormalised) {
  ExpectTrace(TracedLane(GetParam(), "h2o", Asked(2, 0.25, true), 8),
              {{8, kFirstEight, "0 1 2 3 4 5 6 7", 6},
               {1, {2}, "0 1 6 3 4 5 8 7", 7},
               {1, {2}, "0 1 7 3 4 5 8 9", 6},
               {3, {3, 0, 5}, "9 1 7 8 4 10 11 12", 6},
               {1, {0}, "11 1 7 8 4 10 13 12", 7},
               {2, {0, 3}, "12 1 7 13 4 10 15 14", 7}});
}

TEST_P(PolicyTraceTest, CacheFilledByALaterChunkHasScores) {
  ExpectTrace(TracedLane(GetParam(), "h2o", Asked(2, 0.05), 8),
              {{5, {0, 1, 2, 3, 4}, "0 1 2 3 4 - - -"},
               {2, {5, 6}, ""},
               {1, {7}, ""},
               {1, {3}, ""},
               {2, {3, 0}, "8 1 2 7 4 5 10 9", 7}});
}

TEST_P(PolicyTraceTest, SinksStayAndEqualScoresGoByLowestSlot) {
  LanePolicy asked = Asked(0, 0);
  asked.sinks = 2;
  TracedLane lane(GetParam(), "h2o", asked, 8);
  lane.Step(8);
  EXPECT_THAT(lane.Step(6), ElementsAreArray({2, 3, 4, 5, 6, 7}));
  for (int i = 0; i < 20; ++i) lane.Step(3);
  EXPECT_EQ(lane.positions().substr(0, 4), "0 1 ");
}

INSTANTIATE_TEST_SUITE_P(Devices, PolicyTraceTest, testing::ValuesIn(ExactDevices()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace keyline
