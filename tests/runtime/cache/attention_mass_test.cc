// Attention mass: its sum is the number of tokens of the chunk, in every format, however the slots
// lie; and slot by slot it is the oracle's.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/ops/cache_ops.h"
#include "runtime/cache/cache_registry.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

// Reads the scores out of a saved lane's bytes: after the positions, [kv_heads][used].
std::vector<float> SavedScores(CacheDriver& driver, const std::string& policy, int heads,
                               int used) {
  const std::string saved = *driver.cache().SaveLane(driver.stream(), 0);
  const size_t header = saved.find(policy) + policy.size();
  std::vector<float> scores(size_t(heads) * used);
  saved.copy(reinterpret_cast<char*>(scores.data()), scores.size() * sizeof(float),
             header + scores.size() * sizeof(int32_t));
  return scores;
}

struct MassCase {
  std::string storage;
  DType plain;
  int heads, kv_heads, head_dim;
  int window;
  float softcap;
  std::string policy = "h2o";
};

class AttentionMass : public testing::TestWithParam<std::tuple<MassCase, DeviceUnderTest>> {
 protected:
  static constexpr int kLength = 520;

  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }

  static AttentionSpec Spec() {
    const MassCase& c = std::get<0>(GetParam());
    AttentionSpec spec = PlainSpec(c.heads, c.kv_heads, c.head_dim);
    spec.window = c.window;
    spec.softcap = c.softcap;
    return spec;
  }
  static KvCacheShape Shape(int max_tokens) {
    const auto& [c, under_test] = GetParam();
    return {.lanes = 1,
            .kv_heads = c.kv_heads,
            .head_dim = c.head_dim,
            .length = kLength,
            .max_tokens = max_tokens,
            .plain = under_test.cuda ? under_test.activations : c.plain};
  }
  static CacheConfig Config(const std::string& policy) {
    CacheConfig config;
    config.storage = std::get<0>(GetParam()).storage;
    config.policy.policy = policy;
    return config;
  }
};

TEST_P(AttentionMass, SumsToTheTokensOfTheChunkAndEqualsTheOracle) {
  const auto& [c, under_test] = GetParam();
  const int length = kLength;
  const auto device = under_test.Open();
  const AttentionSpec spec = Spec();
  const KvCacheShape shape = Shape(700);
  const CacheConfig config = Config(c.policy);
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  reference::KvLaneReference oracle(ReferenceSpec(c.storage, shape, spec, config.policy));
  driver.Open(0, config.policy);
  int done = 0;
  // The lane is not full before the end, so scores only grow: by each chunk's mass.
  std::vector<float> before(size_t(c.kv_heads) * length, 0.0f);
  for (int n : {300, 1, 60, 2, 1, 100}) {
    driver.Run({.lane = 0, .tokens = n, .stream = 12});
    RunReference(oracle, spec, 12, done, n, under_test.activations);
    done += n;
    const std::vector<float> scores = SavedScores(driver, c.policy, c.kv_heads, done);
    for (int h = 0; h < c.kv_heads; ++h) {
      double sum = 0;
      for (int j = 0; j < done; ++j) {
        const float score = scores[size_t(h) * done + j];
        float& last = before[size_t(h) * length + j];
        sum += double{score} - last;
        last = score;
        // Types of 2 bytes may round a quantised key, and so change a logit and with it a weight.
        const double want = oracle.scores()[h][j];
        const double rounding =
            under_test.activations == DType::kF32 ? 0 : 16 * under_test.half_ulp() * want;
        ASSERT_NEAR(score, want, 1e-5 * (1 + done) + rounding) << "slot " << j;
      }
      EXPECT_NEAR(sum, done == 300 ? 0 : n, 1e-3 * n) << "chunk of " << n;
    }
  }
}

// Once tokens are evicted their slots lie in any order. A slot that is written anew begins at zero.
TEST_P(AttentionMass, SumsToTheTokensOfTheChunkAfterEvictions) {
  const auto& [c, under_test] = GetParam();
  const int length = kLength;
  const auto device = under_test.Open();
  const AttentionSpec spec = Spec();
  const KvCacheShape shape = Shape(length);
  const CacheConfig config = Config("h2o");
  CacheDriver driver(*device, config, shape, spec, under_test.activations);
  driver.Open(0, config.policy);
  driver.Run({.lane = 0, .tokens = length, .stream = 13});
  std::vector<float> before(size_t(c.kv_heads) * length, 0.0f);
  auto slots_before = driver.cache().SlotPositions(driver.stream(), 0);
  for (int n : {90, 200, 1, 33, 300}) {
    driver.Run({.lane = 0, .tokens = n, .stream = 13});
    const std::vector<float> scores = SavedScores(driver, "h2o", c.kv_heads, length);
    const auto slots = driver.cache().SlotPositions(driver.stream(), 0);
    for (int h = 0; h < c.kv_heads; ++h) {
      double sum = 0;
      for (int j = 0; j < length; ++j) {
        const size_t at = size_t(h) * length + j;
        const double mass =
            double{scores[at]} - (slots[h][j] == slots_before[h][j] ? before[at] : 0.0f);
        ASSERT_GE(mass, 0) << "slot " << j;
        sum += mass;
      }
      EXPECT_NEAR(sum, n, 1e-3 * n) << "chunk of " << n;
    }
    before = scores;
    slots_before = slots;
  }
}

// On CUDA plain K and V have the type of the activations.
const MassCase kMassCases[] = {{"plain", DType::kF32, 6, 2, 64, 0, 0},
                               {"plain", DType::kF32, 3, 3, 16, 0, 0},
                               {"plain", DType::kBF16, 4, 1, 32, 0, 0},
                               {"plain", DType::kF16, 8, 2, 80, 0, 5.0f},
                               {"int8", DType::kF32, 6, 2, 64, 100, 0},
                               {"int4", DType::kF32, 2, 1, 48, 0, 0},
                               {"k8v4", DType::kF32, 60, 1, 16, 301, 20.0f},
                               {"plain", DType::kF32, 8, 2, 128, 0, 0, "h2o_vnorm"},
                               {"int8", DType::kF32, 4, 1, 128, 0, 0},
                               {"int4", DType::kF32, 8, 1, 128, 0, 0, "h2o_vnorm"},
                               {"k8v4", DType::kF32, 14, 2, 128, 0, 0, "h2o_vnorm"},
                               {"int8", DType::kF32, 10, 1, 80, 0, 3.0f},
                               {"int4", DType::kF32, 9, 1, 80, 200, 0},
                               {"k8v4", DType::kF32, 5, 1, 96, 0, 0, "h2o_vnorm"},
                               {"int4", DType::kF32, 2, 2, 64, 0, 0},
                               {"int8", DType::kF32, 1, 1, 256, 0, 0},
                               {"int4", DType::kF32, 3, 1, 256, 0, 0},
                               {"k8v4", DType::kF32, 2, 1, 256, 0, 0},
                               {"plain", DType::kBF16, 8, 2, 128, 0, 0},
                               {"plain", DType::kBF16, 3, 1, 128, 130, 0},
                               {"plain", DType::kF16, 5, 1, 96, 0, 0},
                               {"plain", DType::kF32, 6, 2, 64, 301, 20.0f},
                               {"plain", DType::kBF16, 4, 2, 256, 90, 0}};

INSTANTIATE_TEST_SUITE_P(All, AttentionMass,
                         testing::Combine(testing::ValuesIn(kMassCases),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(cuda, AttentionMass,
                         testing::Combine(testing::ValuesIn(kMassCases),
                                          testing::ValuesIn(CudasUnderTest())));

// h2o_original adds the mass of all lanes of a pass to each of them.
class SharedMass : public testing::TestWithParam<DeviceUnderTest> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(GetParam()); }
};

TEST_P(SharedMass, OriginalSharesOneDecision) {
  const auto device = GetParam().Open();
  const AttentionSpec spec = PlainSpec(4, 2, 16);
  const KvCacheShape shape{
      .lanes = 3, .kv_heads = 2, .head_dim = 16, .length = 24, .max_tokens = 100};
  CacheConfig config;
  config.policy.policy = "h2o_original";
  CacheDriver driver(*device, config, shape, spec);
  LanePolicy h2o = config.policy;
  h2o.policy = "h2o";
  std::vector<reference::KvLaneReference> oracles(
      3, reference::KvLaneReference(ReferenceSpec("plain", shape, spec, h2o)));
  for (int lane = 0; lane < 3; ++lane) driver.Open(lane, config.policy);
  int done = 0;
  for (int n : {24, 5, 1, 7, 1, 1}) {
    std::vector<Feed> feeds;
    for (int lane = 0; lane < 3; ++lane) {
      feeds.push_back({.lane = lane, .tokens = n, .stream = 40u + lane});
    }
    driver.Run(feeds);
    reference::PerSlot total(2, std::vector<double>(24, 0.0));
    for (int lane = 0; lane < 3; ++lane) {
      std::vector<float> q, k, v;
      for (int p = done; p < done + n; ++p) {
        const std::vector<float> token = TokenVectors(spec, 40u + lane, p);
        q.insert(q.end(), token.begin(), token.begin() + 64);
        k.insert(k.end(), token.begin() + 64, token.begin() + 96);
        v.insert(v.end(), token.begin() + 96, token.end());
      }
      oracles[lane].Write(n, oracles[lane].Place(n), k, v);
      oracles[lane].Attend(n, q);
      for (int h = 0; h < 2; ++h) {
        for (int j = 0; j < 24; ++j) total[h][j] += oracles[lane].mass()[h][j];
      }
    }
    for (reference::KvLaneReference& oracle : oracles) oracle.Score(n, total);
    done += n;
    for (int lane = 0; lane < 3; ++lane) {
      const auto slots = driver.cache().SlotPositions(driver.stream(), lane);
      for (int h = 0; h < 2; ++h) ASSERT_EQ(slots[h], oracles[lane].slot_pos()[h]) << lane;
      ASSERT_EQ(slots, driver.cache().SlotPositions(driver.stream(), 0));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, SharedMass, testing::ValuesIn(ExactDevices()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace keyline
