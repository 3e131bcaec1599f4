// The laws of every policy with every storage, taken from the registry by name: what holds for a
// cache whatever its numbers are, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <set>

#include "kernels/cpu/open_cpu.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/chunk_plan.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

struct Kind {
  std::string policy;
  std::string storage;
  DeviceUnderTest device = DefaultCpu();
};

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.policy << " x " << kind.storage << " on " << kind.device.name;
}

std::vector<Kind> AllKinds() {
  std::vector<Kind> kinds;
  for (const std::string& policy : CachePolicyNames()) {
    for (const std::string& storage : CacheStorageNames()) {
      CacheConfig config;
      config.policy.policy = policy;
      config.storage = storage;
      const KvCacheShape shape{
          .lanes = 1, .kv_heads = 1, .head_dim = 16, .length = 8, .max_tokens = 8};
      if (KvCache::BytesFor(config, shape).ok()) kinds.push_back({policy, storage});
    }
  }
  return kinds;
}

bool Shared(const std::string& policy) { return policy == "h2o_original"; }

std::string KindName(const testing::TestParamInfo<Kind>& info) {
  const Kind& kind = info.param;
  return kind.policy + "_" + kind.storage + (kind.device.cuda ? "_" + kind.device.name : "");
}

std::vector<Kind> CudaKinds() {
  std::vector<Kind> kinds;
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    for (const Kind& kind : AllKinds()) kinds.push_back({kind.policy, kind.storage, device});
  }
  return kinds;
}

// Results that do not depend, to the bit, on the shape of a pass: a promise of the CPU. A GPU
// divides the work of a pass by its shape, and so sums in another order.
constexpr char kBitsOfTheCpu[] = "to the bit on the CPU alone";

class CacheLaws : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(device()); }
  const DeviceUnderTest& device() const { return GetParam().device; }
  DType activations() const { return device().activations; }
  CacheConfig Config(bool grace = true) const {
    CacheConfig config;
    config.policy.policy = GetParam().policy;
    config.storage = GetParam().storage;
    if (GetParam().policy.find("h2o") != std::string::npos && grace) {
      config.policy.grace = 5;
      config.policy.sinks = 2;
      config.policy.normalize_scores = true;
    }
    if (GetParam().policy == "protected_last_recent") {
      config.policy.protect_begin = 3;
      config.policy.protect_end = 9;
    }
    return config;
  }
  bool evicts() const { return (*MakePolicy(GetParam().policy))->needs().evicts; }
  // A prompt and some single steps that fit the policy.
  std::vector<int> Chunks(int length, int tokens, int steps) const {
    if (!evicts()) tokens = std::min(tokens, length - steps);
    std::vector<int> chunks = PlanChunks({length}, tokens, 7);
    chunks.insert(chunks.end(), steps, 1);
    return chunks;
  }
  KvCacheShape ShapeOf(const AttentionSpec& spec, int lanes, int length) const {
    return {.lanes = lanes,
            .kv_heads = spec.kv_heads,
            .head_dim = spec.head_dim,
            .length = length,
            .max_tokens = 400,
            .plain = activations()};
  }
};

TEST_P(CacheLaws, EveryTokenOfAChunkIsPresentAndNoPositionTwice) {
  const auto device = this->device().Open();
  for (int lanes = 1; lanes <= 5; lanes += 2) {
    for (int heads = 1; heads <= 4; ++heads) {
      const int length = 23 + 2 * heads;
      const AttentionSpec spec = PlainSpec(2 * heads, heads, 16);
      CacheDriver driver(*device, Config(), ShapeOf(spec, lanes, length), spec, activations());
      for (int lane = 0; lane < lanes; ++lane) {
        driver.Open(lane, Config().policy);
        int done = 0;
        for (int n : Chunks(length, 60, 5)) {
          driver.Run(Feed{.lane = lane, .tokens = n, .stream = 5u + lane});
          done += n;
          for (const std::vector<int32_t>& slots :
               driver.cache().SlotPositions(driver.stream(), lane)) {
            std::set<int32_t> positions;
            for (int32_t p : slots) {
              if (p >= 0) {
                ASSERT_TRUE(positions.insert(p).second) << "position " << p << " twice";
                ASSERT_LT(p, done);
              }
            }
            ASSERT_EQ(static_cast<int>(positions.size()), std::min(done, length));
            for (int p = done - n; p < done; ++p) ASSERT_EQ(positions.count(p), 1u) << p;
          }
        }
      }
    }
  }
}

TEST_P(CacheLaws, FirstChunkMayBeCutAtWill) {
  if (device().cuda) GTEST_SKIP() << kBitsOfTheCpu;
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(6, 2, 32);
  const int length = 300;
  CacheDriver driver(*device, Config(), ShapeOf(spec, 2, length), spec, activations());
  const int prompt = evicts() ? 300 : 290;
  const auto run = [&](int lane, const std::vector<int>& pieces) {
    driver.Open(lane, Config().policy);
    std::vector<float> out;
    for (int n : pieces) {
      const std::vector<float> part = driver.Run(
          {.lane = lane, .tokens = n, .stream = 9, .chunk_tokens = pieces.size() > 1 ? prompt : 0});
      out.insert(out.end(), part.begin(), part.end());
    }
    for (int n : evicts() ? std::vector<int>{11, 1, 30, 1, 1} : std::vector<int>{1, 4, 1}) {
      const std::vector<float> part = driver.Run({.lane = lane, .tokens = n, .stream = 9});
      out.insert(out.end(), part.begin(), part.end());
    }
    return std::pair(out, driver.cache().SlotPositions(driver.stream(), lane));
  };
  const auto whole = run(0, {prompt});
  const int rest = prompt - 1 - 17 - 1 - 64 - 100;
  EXPECT_EQ(run(1, {1, 17, 1, 64, 100, rest}), whole);
  EXPECT_EQ(run(0, {prompt - 1, 1}), whole);
}

// What a pass leaves behind on its way is there for the next, however soon that comes, and a
// recording of a pass does what the pass does.
TEST_P(CacheLaws, StepsTogetherOrRecordedAreThoseOneByOne) {
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(8, 4, 64);
  constexpr int kLanes = 3, kLength = 380, kSteps = 8;
  enum class How { kOneByOne, kTogether, kRecorded };
  const auto run = [&](How how) {
    CacheDriver driver(*device, Config(), ShapeOf(spec, kLanes, kLength), spec, activations());
    std::vector<Feed> step(kLanes);
    for (int lane = 0; lane < kLanes; ++lane) {
      driver.Open(lane, Config().policy);
      step[lane] = {.lane = lane, .tokens = 1, .stream = 3u + lane};
      for (int n : Chunks(kLength, kLength + 20 * lane, kSteps)) {
        if (n > 1) driver.Run({.lane = lane, .tokens = n, .stream = step[lane].stream});
      }
    }
    std::vector<std::vector<std::vector<float>>> out(kSteps);
    if (how == How::kTogether) out = driver.RunTogether(std::vector(kSteps, step));
    for (int i = 0; how != How::kTogether && i < kSteps; ++i) {
      out[i] = how == How::kRecorded ? driver.RunRecorded(step) : driver.Run(step);
    }
    std::vector<std::vector<std::vector<int32_t>>> slots(kLanes);
    for (int lane = 0; lane < kLanes; ++lane) {
      slots[lane] = driver.cache().SlotPositions(driver.stream(), lane);
    }
    return std::pair(out, slots);
  };
  const auto one_by_one = run(How::kOneByOne);
  EXPECT_EQ(run(How::kTogether), one_by_one);
  EXPECT_EQ(run(How::kRecorded), one_by_one);
}

TEST_P(CacheLaws, LanesDoNotInfluenceEachOther) {
  if (device().cuda) GTEST_SKIP() << kBitsOfTheCpu;
  if (Shared(GetParam().policy)) GTEST_SKIP() << "decides for all lanes at once, on purpose";
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(4, 2, 16);
  const int length = 33;
  CacheDriver driver(*device, Config(), ShapeOf(spec, 4, length), spec, activations());
  const std::vector<int> chunks = Chunks(length, 70, 6);
  std::vector<std::vector<float>> alone;
  alone.reserve(chunks.size());
  driver.Open(2, Config().policy);
  for (int n : chunks) alone.push_back(driver.Run({.lane = 2, .tokens = n, .stream = 1}));
  const auto slots = driver.cache().SlotPositions(driver.stream(), 2);

  // In company of lanes that are elsewhere in their sequences, at another place in the batch.
  for (int lane : {0, 1, 3}) driver.Open(lane, Config().policy);
  const int others = evicts() ? 20 : 9;
  driver.Run({{.lane = 3, .tokens = 10, .stream = 2}, {.lane = 0, .tokens = 21, .stream = 3}});
  int fed = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    std::vector<Feed> feeds = {{.lane = 1, .tokens = chunks[i], .stream = 1}};
    if (i == 0) driver.Open(1, Config().policy);
    if (fed + 3 <= others) {
      feeds.insert(feeds.begin(), {.lane = 3, .tokens = 3, .stream = 2});
      feeds.push_back({.lane = 0, .tokens = 1, .stream = 3});
      fed += 3;
    }
    const size_t place = feeds.size() == 3 ? 1 : 0;
    EXPECT_EQ(driver.Run(feeds)[place], alone[i]) << "chunk " << i;
  }
  EXPECT_EQ(driver.cache().SlotPositions(driver.stream(), 1), slots);
}

TEST_P(CacheLaws, ReopenedLaneHasNoTraceOfItsPredecessor) {
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(2, 2, 16);
  const int length = 27;
  CacheDriver fresh(*device, Config(), ShapeOf(spec, 1, length), spec, activations());
  CacheDriver used(*device, Config(), ShapeOf(spec, 1, length), spec, activations());
  used.Open(0, Config().policy);
  for (int n : Chunks(length, 80, 3)) used.Run({.lane = 0, .tokens = n, .stream = 77});
  fresh.Open(0, Config().policy);
  used.Open(0, Config().policy);
  for (const auto& head : used.cache().KeptPositions(used.stream(), 0)) EXPECT_TRUE(head.empty());
  EXPECT_EQ(used.cache().Report(used.stream(), 0).slots_used, 0);
  for (int n : Chunks(length, 50, 4)) {
    const Feed feed{.lane = 0, .tokens = n, .stream = 6};
    EXPECT_EQ(used.Run(feed), fresh.Run(feed));
    EXPECT_EQ(used.cache().SlotPositions(used.stream(), 0),
              fresh.cache().SlotPositions(fresh.stream(), 0));
  }
  EXPECT_EQ(*used.cache().SaveLane(used.stream(), 0), *fresh.cache().SaveLane(fresh.stream(), 0));
}

TEST_P(CacheLaws, ThreadsAndInstructionSetsGiveTheSameBits) {
  if (device().cuda) GTEST_SKIP() << "instruction sets are of the CPU";
  const AttentionSpec spec = PlainSpec(6, 2, 48);
  const auto run = [&](int threads, const std::string& isa, int length) {
    const auto device = OpenTestDevice(threads, isa);
    CacheDriver driver(*device, Config(), ShapeOf(spec, 2, length), spec, activations());
    driver.Open(0, Config().policy);
    driver.Open(1, Config().policy);
    std::vector<std::vector<float>> out;
    const int prompt = evicts() ? length : length - 12;
    out.push_back(driver.Run({.lane = 0, .tokens = prompt, .stream = 4}));
    for (int n : {1, 6, 1, 1}) {
      const auto parts = driver.Run(
          {{.lane = 1, .tokens = 3, .stream = 5}, {.lane = 0, .tokens = n, .stream = 4}});
      out.insert(out.end(), parts.begin(), parts.end());
    }
    out.emplace_back();
    for (const auto& head : driver.cache().SlotPositions(driver.stream(), 0)) {
      for (int32_t p : head) out.back().push_back(static_cast<float>(p));
    }
    return out;
  };
  constexpr int kSegments = 333;  // more than one segment of attention
  const auto expected = run(1, "", kSegments);
  EXPECT_EQ(run(2, "", kSegments), expected);
  EXPECT_EQ(run(5, "", kSegments), expected);
  // The plain instruction set is slow.
  for (const char* isa : {"avx512", "avx2", "scalar"}) {
    const auto available = OpenCpuDevice(1, isa);
    if (available.ok()) {
      EXPECT_EQ(run(2, isa, 50), run(1, "", 50)) << isa;
    }
  }
}

TEST_P(CacheLaws, SavedLaneGoesOnBitForBit) {
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(4, 2, 32);
  const int length = 41;
  CacheDriver driver(*device, Config(), ShapeOf(spec, 3, length), spec, activations());
  // A cache of other dimensions in what does not matter: lanes, more slots.
  CacheDriver other(*device, Config(), ShapeOf(spec, 1, 150), spec, activations());
  LanePolicy policy = Config().policy;
  policy.cache_length = {length};
  driver.Open(1, policy);
  int done = 0;
  const std::vector<int> chunks = Chunks(length, 70, 12);
  for (size_t i = 0; i < chunks.size(); ++i) {
    driver.Run({.lane = 1, .tokens = chunks[i], .stream = 8});
    done += chunks[i];
    const absl::StatusOr<std::string> saved = driver.cache().SaveLane(driver.stream(), 1);
    ASSERT_TRUE(saved.ok()) << saved.status();
    ASSERT_TRUE(other.cache().RestoreLane(other.stream(), 0, *saved).ok());
    EXPECT_EQ(*other.cache().SaveLane(other.stream(), 0), *saved);
    EXPECT_EQ(other.cache().SlotPositions(other.stream(), 0),
              driver.cache().SlotPositions(driver.stream(), 1));
  }
  // The caches differ in the number of their slots, by which a GPU may divide its work.
  if (this->device().cuda) return;
  other.SetPosition(0, done);
  for (int n : evicts() ? std::vector<int>{9, 1, 1, 5, 1} : std::vector<int>{}) {
    EXPECT_EQ(other.Run({.lane = 0, .tokens = n, .stream = 8}),
              driver.Run({.lane = 1, .tokens = n, .stream = 8}));
  }
  EXPECT_EQ(*other.cache().SaveLane(other.stream(), 0),
            *driver.cache().SaveLane(driver.stream(), 1));
}

// 0 * NaN is NaN: what a predecessor left in slots that are not in use must not be read.
TEST_P(CacheLaws, PoisonOfAPredecessorDoesNotReachTheNext) {
  const auto device = this->device().Open();
  AttentionSpec spec = PlainSpec(2, 1, 16);
  const int length = 40;
  // A norm with NaN weights makes every k NaN.
  std::vector<float> weight(16, std::numeric_limits<float>::quiet_NaN());
  Workbench bench(this->device());
  spec.k_norm = {bench.Array(weight), 0};
  CacheDriver driver(*device, Config(), ShapeOf(spec, 1, length), spec, activations());
  driver.Open(0, Config().policy);
  driver.Run({.lane = 0, .tokens = 30, .stream = 1});
  weight.assign(16, 1.0f);
  bench.Write(const_cast<float*>(spec.k_norm.weight), weight);
  driver.Open(0, Config().policy);
  for (float x : driver.Run({.lane = 0, .tokens = 5, .stream = 1})) EXPECT_EQ(x, x);
}

TEST_P(CacheLaws, ReportCountsWhatIsThere) {
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(2, 1, 16);
  const int length = 30;
  CacheDriver driver(*device, Config(), ShapeOf(spec, 1, length), spec, activations());
  driver.Open(0, Config().policy);
  int done = 0;
  for (int n : Chunks(length, 77, 3)) {
    driver.Run({.lane = 0, .tokens = n, .stream = 2});
    done += n;
    const LaneReport report = driver.cache().Report(driver.stream(), 0);
    const size_t kept = driver.cache().KeptPositions(driver.stream(), 0)[0].size();
    EXPECT_EQ(report.cache_length, length);
    EXPECT_EQ(report.slots_used, static_cast<int>(kept));
    EXPECT_EQ(report.evicted, done - static_cast<int>(kept));
    EXPECT_LE(report.protected_slots, report.slots_used);
  }
}

// Replaying the slots that were written gives the same table of positions.
TEST_P(CacheLaws, TraceReplaysEveryDecision) {
  const auto device = this->device().Open();
  const AttentionSpec spec = PlainSpec(4, 2, 16);
  const int length = 31;
  CacheDriver driver(*device, Config(), ShapeOf(spec, 2, length), spec, activations());
  driver.cache().RecordPlacements(true);
  driver.Open(0, Config().policy);
  driver.Open(1, Config().policy);
  std::vector<std::vector<int32_t>> replayed(2, std::vector<int32_t>(length, -1));
  for (int n : Chunks(length, 80, 5)) {
    driver.Run({{.lane = 1, .tokens = n, .stream = 3}, {.lane = 0, .tokens = n, .stream = 4}});
    const std::vector<ChunkPlacement> placements = driver.cache().TakePlacements();
    ASSERT_EQ(placements.size(), 2u);
    const ChunkPlacement& placement = placements[1];
    EXPECT_EQ(placement.lane, 0);
    const auto before = replayed;
    for (const SlotMove& move : placement.moves) {
      replayed[move.head][move.to] = before[move.head][move.from];
    }
    for (int t = 0; t < placement.tokens; ++t) {
      for (int g = 0; g < 2; ++g) {
        replayed[g][placement.slots[t][g]] = placement.first_position + t;
      }
    }
    EXPECT_EQ(replayed, driver.cache().SlotPositions(driver.stream(), 0));
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, CacheLaws, testing::ValuesIn(AllKinds()), KindName);
INSTANTIATE_TEST_SUITE_P(cuda, CacheLaws, testing::ValuesIn(CudaKinds()), KindName);

TEST(CacheLawsTest, EveryPolicyAndStorageIsTested) {
  std::set<std::string> policies, storages;
  for (const Kind& kind : AllKinds()) {
    policies.insert(kind.policy);
    storages.insert(kind.storage);
  }
  EXPECT_EQ(policies.size(), CachePolicyNames().size());
  EXPECT_EQ(storages.size(), CacheStorageNames().size());
}

// Lanes of one cache may have different policies and lengths.
TEST(CacheLawsTest, PoliciesOfOneCacheDoNotMix) {
  const auto device = OpenTestDevice();
  const AttentionSpec spec = PlainSpec(4, 2, 16);
  CacheConfig config;
  config.storage = "int8";
  config.policy.policy = "h2o";
  config.enabled = {"dense", "last_recent", "qh2o_vnorm", "h2o"};
  const KvCacheShape shape{
      .lanes = 4, .kv_heads = 2, .head_dim = 16, .length = 64, .max_tokens = 300};
  CacheDriver mixed(*device, config, shape, spec);
  std::vector<std::unique_ptr<CacheDriver>> alone;
  std::vector<LanePolicy> policies;
  for (int lane = 0; lane < 4; ++lane) {
    LanePolicy policy;
    policy.policy = config.enabled[lane];
    policy.cache_length = {lane == 0 ? 64 : 20 + lane};
    if (lane >= 2) policy.grace = 3;
    policies.push_back(policy);
    CacheConfig own;
    own.storage = "int8";
    own.policy = policy;
    alone.push_back(std::make_unique<CacheDriver>(*device, own, shape, spec));
    alone.back()->Open(lane, policy);
    mixed.Open(lane, policy);
  }
  for (int n : {20, 1, 1, 1, 3, 8, 1, 2, 1}) {
    std::vector<Feed> feeds;
    for (int lane = 3; lane >= 0; --lane) {
      // The first chunk ends where the lane is full.
      feeds.push_back({.lane = lane, .tokens = n, .stream = 10u + lane});
    }
    const auto together = mixed.Run(feeds);
    for (size_t i = 0; i < feeds.size(); ++i) {
      EXPECT_EQ(alone[feeds[i].lane]->Run(feeds[i]), together[i]) << "lane " << feeds[i].lane;
    }
  }
}

}  // namespace
}  // namespace keyline
