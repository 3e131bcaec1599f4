// What a lane gets from a pass does not depend, to the bit, on the other lanes of it and on how a
// GPU deals the work out.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

struct CrowdShape {
  int heads, kv_heads, head_dim;
  int length = 400;
};

// Passes of all feeds together, recorded where they may be, and of each by itself: the same
// outputs, to the bit.
void ExpectEachAsAlone(CacheDriver& together, CacheDriver& alone, const std::vector<Feed>& feeds,
                       int passes) {
  for (int pass = 0; pass < passes; ++pass) {
    const std::vector<std::vector<float>> got =
        feeds[0].tokens == 1 ? together.RunRecorded(feeds) : together.Run(feeds);
    for (const Feed& feed : feeds) {
      ASSERT_EQ(got[feed.lane], alone.Run(feed)) << "lane " << feed.lane << ", pass " << pass;
    }
  }
}

class AttendCrowd : public testing::TestWithParam<
                        std::tuple<CrowdShape, std::string, std::string, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<3>(GetParam())); }
};

// More work in a pass of single tokens than a GPU has room for at once: what a lane gets does not
// depend on how it is dealt out, to the bit.
TEST_P(AttendCrowd, EachLaneAsAlone) {
  const auto& [heads, storage, policy, under_test] = GetParam();
  const auto device = under_test.Open();
  const AttentionSpec spec = PlainSpec(heads.heads, heads.kv_heads, heads.head_dim);
  const KvCacheShape shape{.lanes = 40,
                           .kv_heads = heads.kv_heads,
                           .head_dim = heads.head_dim,
                           .length = heads.length,
                           .max_tokens = heads.length,
                           .plain = under_test.activations};
  CacheConfig config;
  config.storage = storage;
  config.policy.policy = policy;
  if (policy != "last_recent") config.policy.grace = 11;
  CacheDriver together(*device, config, shape, spec, under_test.activations);
  CacheDriver alone(*device, config, shape, spec, under_test.activations);
  std::vector<Feed> feeds;
  for (int lane = 0; lane < shape.lanes; ++lane) {
    // Some are full, some come to be full, the others take less time to make.
    const int filled = lane < 34 ? 200 + 6 * lane : shape.length;
    const Feed first{.lane = lane, .tokens = filled, .stream = 90u + lane};
    for (CacheDriver* driver : {&together, &alone}) {
      driver->Open(lane, config.policy);
      driver->Run(first);
    }
    feeds.push_back({.lane = lane, .tokens = 1, .stream = first.stream});
  }
  ASSERT_NO_FATAL_FAILURE(ExpectEachAsAlone(together, alone, feeds, 4));
  for (int lane = 0; lane < shape.lanes; ++lane) {
    EXPECT_EQ(together.cache().SlotPositions(together.stream(), lane),
              alone.cache().SlotPositions(alone.stream(), lane));
  }
}

std::vector<std::tuple<CrowdShape, std::string, std::string, DeviceUnderTest>> CudaCrowds() {
  std::vector<std::tuple<CrowdShape, std::string, std::string, DeviceUnderTest>> cases;
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    if (device.activations == DType::kF32) continue;
    for (const char* policy : {"last_recent", "h2o_vnorm"}) {
      for (const char* storage : {"plain", "int8", "k8v4"}) {
        cases.emplace_back(CrowdShape{16, 8, 64}, storage, policy, device);
      }
      for (const char* storage : {"plain", "int4"}) {
        cases.emplace_back(CrowdShape{34, 2, 64}, storage, policy, device);
      }
      // Where mass is taken, so much is on its way to it that the lanes are attended in three
      // waves.
      cases.emplace_back(CrowdShape{128, 1, 64, 1600}, "plain", policy, device);
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(cuda, AttendCrowd, testing::ValuesIn(CudaCrowds()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttendCrowd);

class AttendManyChunks : public testing::TestWithParam<std::tuple<std::string, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }
};

// Chunks of which a GPU copies slots first, in caches so long that it has no room for the copies of
// all of them at once: they go in shares, which show in no bit.
TEST_P(AttendManyChunks, EachAsAlone) {
  const auto& [storage, under_test] = GetParam();
  const auto device = under_test.Open();
  constexpr int kTokens = 520;
  const AttentionSpec spec = PlainSpec(1, 1, 256);
  const KvCacheShape shape{.lanes = 9,
                           .kv_heads = 1,
                           .head_dim = 256,
                           .length = 1 << 14,
                           .max_tokens = 9 * kTokens,
                           .plain = under_test.activations};
  CacheConfig config;
  config.storage = storage;
  CacheDriver together(*device, config, shape, spec, under_test.activations);
  CacheDriver alone(*device, config, shape, spec, under_test.activations);
  std::vector<Feed> feeds;
  for (int lane = 0; lane < shape.lanes; ++lane) {
    for (CacheDriver* driver : {&together, &alone}) driver->Open(lane, config.policy);
    feeds.push_back({.lane = lane, .tokens = kTokens - lane, .stream = 70u + lane});
  }
  ASSERT_NO_FATAL_FAILURE(ExpectEachAsAlone(together, alone, feeds, 2));
}

std::vector<std::tuple<std::string, DeviceUnderTest>> CudaStorages() {
  std::vector<std::tuple<std::string, DeviceUnderTest>> cases;
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    if (device.activations == DType::kF32) continue;
    for (const char* storage : {"plain", "int8", "k8v4"}) cases.emplace_back(storage, device);
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(cuda, AttendManyChunks, testing::ValuesIn(CudaStorages()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttendManyChunks);

}  // namespace
}  // namespace keyline
