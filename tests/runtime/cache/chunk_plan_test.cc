// The examples of the design's chunk plan, and what must hold for every plan.
#include "runtime/cache/chunk_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace keyline {
namespace {

using Plan = std::vector<int>;

TEST(ChunkPlanTest, ExamplesOfTheDesign) {
  EXPECT_EQ(PlanChunks({32}, 20, 16), (Plan{20}));
  EXPECT_EQ(PlanChunks({32}, 32, 16), (Plan{32}));
  EXPECT_EQ(PlanChunks({32}, 100, 16), (Plan{32, 16, 16, 16, 16, 4}));
  EXPECT_EQ(PlanChunks({32, 40}, 100, 16), (Plan{32, 8, 16, 16, 16, 12}));
  EXPECT_EQ(PlanChunks({32, 50}, 100, 16), (Plan{32, 18, 16, 16, 16, 2}));
  EXPECT_EQ(PlanChunks({32, 52}, 100, 16), (Plan{32, 20, 16, 16, 16}));
  EXPECT_EQ(PlanChunks({32, 53}, 100, 16), (Plan{32, 16, 5, 16, 16, 15}));
  EXPECT_EQ(PlanChunks({64, 32}, 70, 16), (Plan{32, 16, 16, 6}));
  EXPECT_EQ(PlanChunks({8}, 9, 4), (Plan{8, 1}));
}

TEST(ChunkPlanTest, ContinuedConversationHasNoFirstChunk) {
  EXPECT_EQ(PlanChunks({32}, 40, 8, 10), (Plan{8, 8, 6, 8}));
  EXPECT_EQ(PlanChunks({32}, 100, 16, 32), (Plan{16, 16, 16, 16, 4}));
  EXPECT_EQ(PlanChunks({32}, 100, 16, 100), (Plan{}));
}

TEST(ChunkPlanTest, PrefixMarkGivesTheSamePlanOnHitAndMiss) {
  for (int boundary : {1, 7, 31, 32, 33, 50, 77, 100}) {
    const Plan miss = PlanChunks({32, 53}, 100, 16, 0, boundary);
    const Plan hit = PlanChunks({32, 53}, 100, 16, boundary, boundary);
    ASSERT_LE(hit.size(), miss.size());
    EXPECT_TRUE(std::equal(hit.rbegin(), hit.rend(), miss.rbegin())) << boundary;
    EXPECT_EQ(std::accumulate(hit.begin(), hit.end(), 0), 100 - boundary);
  }
}

TEST(ChunkPlanTest, MaxChunkIsNeverExceeded) {
  LanePolicy policy;
  policy.chunk_size = 16;
  EXPECT_EQ(ChunkSize(policy), 16);
  policy.max_chunk = 100;
  EXPECT_EQ(ChunkSize(policy), 16);
  policy.max_chunk = 12;
  EXPECT_EQ(ChunkSize(policy), 8);
  const Plan plan = PlanChunks({32, 44}, 500, ChunkSize(policy));
  EXPECT_LE(*std::max_element(plan.begin() + 1, plan.end()), 12);
}

TEST(ChunkPlanTest, EveryCacheLengthIsABoundary) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::vector<int> lengths(1 + random() % 3);
    for (int& length : lengths) length = 1 + static_cast<int>(random() % 90);
    const int tokens = 1 + static_cast<int>(random() % 200);
    const int chunk = 1 + static_cast<int>(random() % 30);
    const Plan plan = PlanChunks(lengths, tokens, chunk);
    EXPECT_EQ(plan[0], std::min(tokens, *std::min_element(lengths.begin(), lengths.end())));
    std::vector<int> ends;
    int done = 0;
    for (int n : plan) {
      EXPECT_GE(n, 1);
      EXPECT_TRUE(done == 0 || n <= chunk + kChunkOvershoot) << n;
      ends.push_back(done += n);
    }
    EXPECT_EQ(done, tokens);
    for (int length : lengths) {
      EXPECT_TRUE(length > tokens || std::find(ends.begin(), ends.end(), length) != ends.end());
    }
  }
}

}  // namespace
}  // namespace keyline
