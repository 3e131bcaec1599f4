#include "runtime/pipeline/shard_plan.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "gtest/gtest.h"

namespace keyline {
namespace {

size_t LargestStage(const std::vector<size_t>& bytes, size_t head,
                    const std::vector<ShardRange>& plan) {
  size_t largest = 0;
  for (const ShardRange& shard : plan) {
    size_t own = std::accumulate(bytes.begin() + shard.first_layer,
                                 bytes.begin() + shard.first_layer + shard.layers, size_t{0});
    if (shard.head) own += head;
    largest = std::max(largest, own);
  }
  return largest;
}

// Every way to cut, tried.
size_t BestByTrying(const std::vector<size_t>& bytes, size_t head, int ranks, size_t begin) {
  if (ranks == 1) {
    return std::accumulate(bytes.begin() + begin, bytes.end(), head);
  }
  size_t best = SIZE_MAX;
  for (size_t end = begin + 1; end + ranks - 1 <= bytes.size(); ++end) {
    const size_t own = std::accumulate(bytes.begin() + begin, bytes.begin() + end, size_t{0});
    best = std::min(best, std::max(own, BestByTrying(bytes, head, ranks - 1, end)));
  }
  return best;
}

TEST(ShardPlan, IsContiguousCompleteAndOptimal) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const int layers = 1 + static_cast<int>(random() % 9);
    const int ranks = 1 + static_cast<int>(random() % layers);
    std::vector<size_t> bytes(layers);
    for (size_t& b : bytes) b = 1 + random() % 100;
    const size_t head = random() % 200;
    const auto plan = PlanShards(bytes, head, ranks);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->size(), static_cast<size_t>(ranks));
    int next = 0;
    for (int r = 0; r < ranks; ++r) {
      EXPECT_EQ((*plan)[r].first_layer, next);
      EXPECT_GE((*plan)[r].layers, 1);
      EXPECT_EQ((*plan)[r].embedding, r == 0);
      EXPECT_EQ((*plan)[r].head, r == ranks - 1);
      next += (*plan)[r].layers;
    }
    EXPECT_EQ(next, layers);
    EXPECT_EQ(LargestStage(bytes, head, *plan), BestByTrying(bytes, head, ranks, 0));
  }
}

TEST(ShardPlan, CountsTheHead) {
  // Four equal layers and a head as heavy as two: the last rank takes one layer.
  const auto plan = PlanShards({10, 10, 10, 10}, 20, 2);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ((*plan)[0].layers, 3);
  EXPECT_EQ((*plan)[1].layers, 1);
}

TEST(ShardPlan, RefusesMoreRanksThanLayers) {
  const auto plan = PlanShards({1, 1}, 0, 3);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(plan.status().message(),
            "ranks: 3 ranks for a model of 2 layers; each rank needs at least one layer, so 1 to 2 "
            "ranks would do");
}

}  // namespace
}  // namespace keyline
