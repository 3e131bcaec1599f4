// KvCache::Attend against the oracle in double, for shapes, formats, windows and soft caps.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/cache/cache_registry.h"
#include "runtime/cache/chunk_plan.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

// What an output of size `want` may be off by. float32: a bound that holds for all shapes here,
// some times what is measured. Types of 2 bytes: the output is rounded; so may be, on the way, the
// weights of softmax and quantised K and V, and an error of a logit is one of its weight: 8
// roundings of sums of values, which have a size of about 2.
double Allowed(const DeviceUnderTest& device, double want) {
  return device.activations == DType::kF32 ? 2e-5 : 8 * device.half_ulp() * (2 + std::fabs(want));
}

// Largest difference, as a part of what is allowed.
double Difference(const DeviceUnderTest& device, const std::vector<float>& got,
                  const std::vector<double>& want) {
  EXPECT_EQ(got.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(got[i] - want[i]) / Allowed(device, want[i]);
    worst = std::isnan(difference) ? HUGE_VAL : std::max(worst, difference);
  }
  return worst;
}

// Feeds `chunks` to a lane and to the oracle and compares outputs and slots after each.
void ExpectEqualsOracle(const DeviceUnderTest& device, CacheDriver& driver,
                        const std::string& storage, const KvCacheShape& shape,
                        const LanePolicy& policy, const std::vector<int>& chunks, uint64_t stream) {
  reference::KvLaneReference oracle(ReferenceSpec(storage, shape, driver.spec(), policy));
  driver.Open(0, policy);
  int position = 0;
  for (int n : chunks) {
    const std::vector<float> got = driver.Run(Feed{.lane = 0, .tokens = n, .stream = stream});
    const std::vector<double> want =
        RunReference(oracle, driver.spec(), stream, position, n, device.activations);
    ASSERT_LT(Difference(device, got, want), 1) << "chunk of " << n << " at " << position;
    const std::vector<std::vector<int32_t>> slots =
        driver.cache().SlotPositions(driver.stream(), 0);
    for (size_t h = 0; h < slots.size(); ++h) {
      ASSERT_EQ(slots[h], oracle.slot_pos()[h]) << "head " << h << ", chunk at " << position;
    }
    position += n;
  }
}

// With activations of 2 bytes a score is off by more than neighbours differ by, and one other
// choice changes all that follows: then place_slots_test alone looks at the choices of a policy
// that scores.
bool DecidesLikeTheOracle(const std::string& policy, const DeviceUnderTest& device) {
  return device.activations == DType::kF32 || !(*MakePolicy(policy))->needs().scores;
}

struct Shape {
  int heads, kv_heads, head_dim;
};

class AttendShapes
    : public testing::TestWithParam<std::tuple<Shape, std::string, DType, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<3>(GetParam())); }
};

TEST_P(AttendShapes, EqualsOracle) {
  const auto& [heads, storage, plain, under_test] = GetParam();
  const auto device = under_test.Open();
  const AttentionSpec spec = PlainSpec(heads.heads, heads.kv_heads, heads.head_dim);
  const KvCacheShape shape{.lanes = 1,
                           .kv_heads = heads.kv_heads,
                           .head_dim = heads.head_dim,
                           .length = 70,
                           .max_tokens = 80,
                           .plain = plain};
  CacheConfig config;
  config.storage = storage;
  config.policy.policy = "last_recent";
  config.policy.sinks = 3;
  if ((storage == "int4" || storage == "k8v4") && heads.head_dim % 16 != 0) {
    GTEST_SKIP() << "4-bit storage needs a head size that is a multiple of 16";
  }
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  ExpectEqualsOracle(under_test, driver, storage, shape, config.policy, {70, 1, 19, 1, 1}, 7);
  ExpectEqualsOracle(under_test, driver, storage, shape, config.policy, {1, 2, 40, 13}, 8);
}

const Shape kShapes[] = {{2, 2, 16},  {3, 1, 32},  {6, 2, 64},  {4, 4, 80},  {4, 1, 96},
                         {8, 2, 128}, {3, 3, 256}, {50, 1, 16}, {14, 2, 24}, {2, 1, 48}};

INSTANTIATE_TEST_SUITE_P(Formats, AttendShapes,
                         testing::Combine(testing::ValuesIn(kShapes),
                                          testing::Values("plain", "int8", "int4", "k8v4"),
                                          testing::Values(DType::kF32),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(Plain, AttendShapes,
                         testing::Combine(testing::ValuesIn(kShapes), testing::Values("plain"),
                                          testing::Values(DType::kBF16, DType::kF16),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(InstructionSets, AttendShapes,
                         testing::Combine(testing::Values(Shape{6, 2, 64}, Shape{4, 1, 80}),
                                          testing::Values("plain", "k8v4"),
                                          testing::Values(DType::kF32, DType::kF16),
                                          testing::ValuesIn(CpusUnderTest())));

// K and V as they are have the type of the activations.
std::vector<std::tuple<Shape, std::string, DType, DeviceUnderTest>> CudaShapes() {
  std::vector<std::tuple<Shape, std::string, DType, DeviceUnderTest>> cases;
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    for (const Shape& shape : kShapes) {
      for (const char* storage : {"plain", "int8", "int4", "k8v4"}) {
        cases.emplace_back(shape, storage, device.activations, device);
      }
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(cuda, AttendShapes, testing::ValuesIn(CudaShapes()));

class AttendTogether
    : public testing::TestWithParam<std::tuple<Shape, std::string, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<2>(GetParam())); }
};

// Lanes of very different lengths, each by itself filled and then all in one pass: long enough for
// several parts of a lane, none of them a whole number of anything.
TEST_P(AttendTogether, EachLaneEqualsItsOracle) {
  const Shape& heads = std::get<0>(GetParam());
  const std::string& storage = std::get<1>(GetParam());
  const DeviceUnderTest& under_test = std::get<2>(GetParam());  // a lambda has it
  const auto device = under_test.Open();
  const AttentionSpec spec = PlainSpec(heads.heads, heads.kv_heads, heads.head_dim);
  const std::vector<int> filled = {291, 1, 256, 37, 150};
  const KvCacheShape shape{.lanes = static_cast<int>(filled.size()),
                           .kv_heads = heads.kv_heads,
                           .head_dim = heads.head_dim,
                           .length = 293,
                           .max_tokens = 300,
                           .plain = under_test.activations};
  CacheConfig config;
  config.storage = storage;
  config.policy.policy = "last_recent";
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  std::vector<reference::KvLaneReference> oracles(
      shape.lanes, reference::KvLaneReference(ReferenceSpec(storage, shape, spec, config.policy)));
  std::vector<int> position(shape.lanes, 0);
  const auto run = [&](const std::vector<Feed>& feeds) {
    const std::vector<std::vector<float>> got = driver.Run(feeds);
    for (size_t i = 0; i < feeds.size(); ++i) {
      const Feed& feed = feeds[i];
      int& at = position[feed.lane];
      const std::vector<double> want = RunReference(oracles[feed.lane], spec, feed.stream, at,
                                                    feed.tokens, under_test.activations);
      ASSERT_LT(Difference(under_test, got[i], want), 1)
          << "lane " << feed.lane << ", " << feed.tokens << " tokens at " << at;
      at += feed.tokens;
    }
  };
  for (int lane = 0; lane < shape.lanes; ++lane) {
    driver.Open(lane, config.policy);
    run({Feed{.lane = lane, .tokens = filled[lane], .stream = 60u + lane}});
  }
  for (int pass = 0; pass < 4; ++pass) {
    std::vector<Feed> feeds;
    for (const int lane : {3, 0, 4, 2, 1}) {
      // Lanes with more than one token take another way in the same pass.
      const int tokens = pass == 2 && lane % 3 == 0 ? 5 : 1;
      feeds.push_back({.lane = lane, .tokens = tokens, .stream = 60u + lane});
    }
    run(feeds);
  }
}

const Shape kLongShapes[] = {{12, 3, 64}, {4, 4, 80},   {10, 1, 80}, {5, 1, 96},
                             {8, 2, 128}, {17, 1, 128}, {2, 1, 256}};

INSTANTIATE_TEST_SUITE_P(All, AttendTogether,
                         testing::Combine(testing::Values(kLongShapes[0], kLongShapes[2]),
                                          testing::Values("plain", "k8v4"),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(cuda, AttendTogether,
                         testing::Combine(testing::ValuesIn(kLongShapes),
                                          testing::Values("plain", "int8", "int4", "k8v4"),
                                          testing::ValuesIn(CudasUnderTest())));

// So many KV heads that a GPU's blocks have several, as in large batches: int8 goes another way.
INSTANTIATE_TEST_SUITE_P(cudaManyHeads, AttendTogether,
                         testing::Combine(testing::Values(Shape{32, 32, 128}),
                                          testing::Values("int8"),
                                          testing::ValuesIn(CudasUnderTest())));

struct Masks {
  int window;
  float softcap;
};

class AttendMasks : public testing::TestWithParam<std::tuple<Masks, std::string, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<2>(GetParam())); }
};

// Long enough for several segments, with slots out of order.
TEST_P(AttendMasks, EqualsOracle) {
  const auto& [masks, policy, under_test] = GetParam();
  const auto device = under_test.Open();
  AttentionSpec spec = PlainSpec(3, 1, 16);
  spec.window = masks.window;
  spec.softcap = masks.softcap;
  const KvCacheShape shape{.lanes = 1,
                           .kv_heads = 1,
                           .head_dim = 16,
                           .length = 600,
                           .max_tokens = 700,
                           .plain = under_test.activations};
  CacheConfig config;
  config.policy.policy = policy;
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  ExpectEqualsOracle(under_test, driver, "plain", shape, config.policy, {600, 1, 70, 1, 1}, 3);
  ExpectEqualsOracle(under_test, driver, "plain", shape, config.policy, {300, 17, 1}, 4);
}

const Masks kMasks[] = {{0, 0}, {1, 0}, {65, 0}, {300, 0}, {0, 1.5f}, {90, 30.0f}};

INSTANTIATE_TEST_SUITE_P(All, AttendMasks,
                         testing::Combine(testing::ValuesIn(kMasks),
                                          testing::Values("last_recent", "h2o"),
                                          testing::Values(DefaultCpu())));

std::vector<std::tuple<Masks, std::string, DeviceUnderTest>> CudaMasks() {
  std::vector<std::tuple<Masks, std::string, DeviceUnderTest>> cases;
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    for (const Masks& masks : kMasks) {
      for (const char* policy : {"last_recent", "h2o"}) {
        if (DecidesLikeTheOracle(policy, device)) cases.emplace_back(masks, policy, device);
      }
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(cuda, AttendMasks, testing::ValuesIn(CudaMasks()));

struct TilesCase {
  int heads, kv_heads, head_dim;
  int window;
  float softcap;
};

class AttendTiles : public testing::TestWithParam<std::tuple<TilesCase, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }

  static AttentionSpec Spec() {
    const TilesCase& c = std::get<0>(GetParam());
    AttentionSpec spec = PlainSpec(c.heads, c.kv_heads, c.head_dim);
    spec.window = c.window;
    spec.softcap = c.softcap;
    return spec;
  }
  static KvCacheShape ShapeOf(int length) {
    const auto& [c, under_test] = GetParam();
    return {.lanes = 1,
            .kv_heads = c.kv_heads,
            .head_dim = c.head_dim,
            .length = length,
            .max_tokens = length,
            .plain = under_test.activations};
  }
};

// Several blocks of query rows and several tiles of slots, for each head size that has kernels of
// its own: in order, and with fresh tokens among old ones.
TEST_P(AttendTiles, EqualsOracle) {
  const DeviceUnderTest& under_test = std::get<1>(GetParam());
  const auto device = under_test.Open();
  const AttentionSpec spec = Spec();
  const KvCacheShape shape = ShapeOf(450);
  CacheConfig config;
  config.policy.policy = "last_recent";
  config.policy.sinks = 3;
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  ExpectEqualsOracle(under_test, driver, "plain", shape, config.policy, {450, 1, 150, 7, 300}, 5);
  ExpectEqualsOracle(under_test, driver, "plain", shape, config.policy, {2, 200, 1, 64}, 6);
}

// The same where scores scatter a chunk's tokens, whatever they come to on this GPU. (A CPU decides
// like the oracle: AttendPolicies.)
TEST_P(AttendTiles, EqualsOracleWithTheSameSlots) {
  const auto& [c, under_test] = GetParam();
  if (!under_test.cuda) GTEST_SKIP() << "for GPUs";
  const auto device = under_test.Open();
  const AttentionSpec spec = Spec();
  const KvCacheShape shape = ShapeOf(600);
  CacheConfig config;
  config.policy.policy = "h2o";
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  reference::KvLaneReference oracle(ReferenceSpec("plain", shape, spec, config.policy));
  driver.Open(0, config.policy);
  int position = 0;
  for (const int n : {560, 40, 170, 1, 260, 512}) {
    const std::vector<float> got = driver.Run(Feed{.lane = 0, .tokens = n, .stream = 8});
    const auto positions = driver.cache().SlotPositions(driver.stream(), 0);
    std::vector<std::vector<int>> slots(c.kv_heads, std::vector<int>(n, -1));
    for (int h = 0; h < c.kv_heads; ++h) {
      for (size_t slot = 0; slot < positions[h].size(); ++slot) {
        const int token = positions[h][slot] - position;
        if (token >= 0) slots[h].at(token) = static_cast<int>(slot);
      }
      ASSERT_EQ(std::count(slots[h].begin(), slots[h].end(), -1), 0);
    }
    const std::vector<double> want =
        RunReference(oracle, spec, 8, position, n, under_test.activations, &slots);
    ASSERT_LT(Difference(under_test, got, want), 1) << "chunk of " << n << " at " << position;
    position += n;
  }
}

const TilesCase kTilesCases[] = {{6, 2, 64, 0, 0},    {4, 1, 64, 90, 30.0f}, {3, 1, 80, 0, 0},
                                 {2, 1, 96, 200, 0},  {8, 2, 128, 0, 0},     {3, 3, 128, 1, 0},
                                 {5, 1, 128, 300, 0}, {4, 2, 128, 0, 1.5f},  {2, 1, 256, 0, 0},
                                 {4, 2, 256, 170, 0}};
INSTANTIATE_TEST_SUITE_P(All, AttendTiles,
                         testing::Combine(testing::ValuesIn(kTilesCases),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(cuda, AttendTiles,
                         testing::Combine(testing::ValuesIn(kTilesCases),
                                          testing::ValuesIn(CudasUnderTest())));

struct PolicyCase {
  std::string storage;
  LanePolicy policy;
};

void PrintTo(const PolicyCase& c, std::ostream* out) {
  *out << c.policy.policy << " " << c.storage << " sinks " << c.policy.sinks.value_or(-1)
       << " grace " << c.policy.grace << " fraction " << c.policy.keep_initial_fraction
       << (c.policy.normalize_scores ? " normalised" : "") << " protect " << c.policy.protect_begin
       << ":" << c.policy.protect_end;
}

class AttendPolicies : public testing::TestWithParam<std::tuple<PolicyCase, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }
};

// Outputs and slots of every policy with its parameters, over prefill, chunks and single steps.
TEST_P(AttendPolicies, EqualsOracle) {
  const auto& [c, under_test] = GetParam();
  const auto device = under_test.Open();
  const AttentionSpec spec = PlainSpec(4, 2, 32);
  const KvCacheShape shape{.lanes = 1,
                           .kv_heads = 2,
                           .head_dim = 32,
                           .length = 40,
                           .max_tokens = 64,
                           .plain = under_test.activations};
  CacheConfig config;
  config.policy = c.policy;
  config.storage = c.storage;
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  const bool evicts = c.policy.policy != "dense";
  for (const auto& [tokens, chunk, tail] : {std::tuple{26, 7, 12}, {40, 9, 0}, {120, 9, 15}}) {
    if (!evicts && tokens + tail > 40) continue;
    std::vector<int> chunks = PlanChunks({40}, tokens, chunk);
    chunks.insert(chunks.end(), tail, 1);
    ExpectEqualsOracle(under_test, driver, c.storage, shape, c.policy, chunks, 100 + tokens);
  }
}

std::vector<PolicyCase> PolicyCases() {
  std::vector<PolicyCase> cases;
  for (const std::string& storage : CacheStorageNames()) {
    for (const std::string& name : CachePolicyNames()) {
      LanePolicy policy;
      policy.policy = name;
      if (name[0] == 'q' && storage == "plain") continue;
      cases.push_back({storage, policy});
      if (name == "protected_last_recent") {
        policy.protect_begin = 5;
        policy.protect_end = 30;
        cases.push_back({storage, policy});
        policy.sinks = 2;
        cases.push_back({storage, policy});
        policy.sinks = 7;
        policy.max_protected_fraction = 0.3;
        cases.push_back({storage, policy});
      }
      if (name.find("h2o") == std::string::npos) continue;
      policy.grace = 11;
      cases.push_back({storage, policy});
      policy.normalize_scores = true;
      cases.push_back({storage, policy});
      policy.sinks = 4;
      policy.grace = 5;
      cases.push_back({storage, policy});
      policy.keep_initial_fraction = 0.4;
      policy.normalize_scores = false;
      cases.push_back({storage, policy});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, AttendPolicies,
                         testing::Combine(testing::ValuesIn(PolicyCases()),
                                          testing::Values(DefaultCpu())));

std::vector<std::tuple<PolicyCase, DeviceUnderTest>> CudaPolicies() {
  std::vector<std::tuple<PolicyCase, DeviceUnderTest>> cases;
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    for (const PolicyCase& c : PolicyCases()) {
      if (DecidesLikeTheOracle(c.policy.policy, device)) cases.emplace_back(c, device);
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(cuda, AttendPolicies, testing::ValuesIn(CudaPolicies()));

}  // namespace
}  // namespace keyline
