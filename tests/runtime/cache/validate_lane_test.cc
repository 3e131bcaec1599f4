// Admission: what is refused, word for word, because the message is what a user has to go by; what
// caches are refused at creation; bytes, and damaged saved lanes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "runtime/cache/cache_registry.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

using testing::HasSubstr;

CacheConfig Server(const std::string& policy, std::vector<std::string> enabled = {}) {
  CacheConfig config;
  config.policy.policy = policy;
  config.enabled = std::move(enabled);
  return config;
}

LanePolicy Asks(const std::string& policy) {
  LanePolicy asked;
  asked.policy = policy;
  asked.chunk_size = 16;
  return asked;
}

std::string Refusal(const CacheConfig& config, const LanePolicy& policy, int prompt = 10,
                    int max_new = 10, std::vector<int> lengths = {64}, int pass = 64) {
  const absl::Status status = ValidateLane(config, lengths, policy, prompt, max_new, pass);
  if (status.ok()) return "";
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(ValidateLaneTest, DenseSaysWhatWouldFit) {
  const CacheConfig both = Server("dense", {"h2o"});
  EXPECT_EQ(Refusal(both, Asks("dense"), 60, 5), "");  // the last token is never fed
  EXPECT_EQ(Refusal(both, Asks("dense"), 60, 6),
            "policy 'dense' keeps every token: prompt 60 + max_new_tokens 6 need 65 slots and "
            "cache_length is 64; what would fit: max_new_tokens <= 5, or policy 'h2o' at any "
            "length");
  EXPECT_EQ(Refusal(Server("dense"), Asks("dense"), 70, 1),
            "policy 'dense' keeps every token: prompt 70 + max_new_tokens 1 need 70 slots and "
            "cache_length is 64; what would fit: a server with a policy that evicts (enabled here: "
            "dense)");
  EXPECT_THAT(Refusal(both, Asks("dense"), 50, 1, {64, 40, 64}), HasSubstr("(layer 1)"));
  LanePolicy shorter = Asks("dense");
  shorter.cache_length = {32};
  EXPECT_THAT(Refusal(both, shorter, 30, 10), HasSubstr("cache_length is 32"));
}

TEST(ValidateLaneTest, TheDefaultChunkSizeIsTheLargestThatFits) {
  LanePolicy asked = Asks("h2o");
  asked.chunk_size.reset();
  asked.sinks = 4;
  asked.grace = 20;
  EXPECT_EQ(DefaultChunkSize(asked, {64}, 512), 36);  // 64 - 4 - 20, less the overshoot
  EXPECT_EQ(DefaultChunkSize(asked, {64, 50, 80}, 512), 22);
  EXPECT_EQ(DefaultChunkSize(asked, {64}, 30), 30);
  EXPECT_EQ(DefaultChunkSize(asked, {2048}, 512), 512);
  asked.cache_length = {40};
  EXPECT_EQ(DefaultChunkSize(asked, {64}, 512), 12);
  // What it gives is served, and one more is not.
  asked.chunk_size = DefaultChunkSize(asked, {64}, 512);
  EXPECT_EQ(Refusal(Server("h2o"), asked), "");
  asked.chunk_size = *asked.chunk_size + 1;
  EXPECT_THAT(Refusal(Server("h2o"), asked), HasSubstr("the largest chunk_size that fits is 12"));

  // Nothing evicts: any size will do. Nothing fits: ValidateLane says why.
  EXPECT_EQ(DefaultChunkSize(Asks("dense"), {8}, 512), 512);
  asked.cache_length = {28};
  EXPECT_EQ(DefaultChunkSize(asked, {64}, 512), 512);
  asked.cache_length = {1, 2};
  EXPECT_EQ(DefaultChunkSize(asked, {64}, 512), 512);

  LanePolicy protects = Asks("protected_last_recent");
  protects.protect_end = 10;
  EXPECT_EQ(DefaultChunkSize(protects, {64}, 512), 50);
}

TEST(ValidateLaneTest, AMarkerIsForPoliciesThatProtect) {
  LanePolicy asked = Asks("last_recent");
  asked.protect_until = "end";
  EXPECT_EQ(Refusal(Server("last_recent"), asked),
            "protect_until is set, but policy 'last_recent' has no such parameter");
}

TEST(ValidateLaneTest, PolicyMustBeEnabled) {
  EXPECT_EQ(Refusal(Server("dense", {"h2o"}), Asks("last_recent")),
            "cache policy 'last_recent' is not enabled; enabled: dense, h2o");
}

TEST(ValidateLaneTest, LengthsMustBeThoseOfTheServer) {
  LanePolicy asked = Asks("h2o");
  asked.cache_length = {65};
  EXPECT_EQ(Refusal(Server("h2o"), asked),
            "cache_length 65 is not in [1, 64], what a lane of this server has");
  asked.cache_length = {64, 32};
  EXPECT_EQ(Refusal(Server("h2o"), asked, 10, 10, {64, 64, 64}),
            "cache_length has 2 numbers and the model 3 layers; give one number for all layers or "
            "one per layer");
  EXPECT_EQ(Refusal(Server("h2o"), asked, 10, 10, {64, 32}), "");
}

TEST(ValidateLaneTest, ChunksMustFitTheCacheAndThePass) {
  LanePolicy asked = Asks("h2o");
  asked.grace = 20;
  asked.sinks = 4;
  asked.chunk_size = 36;
  EXPECT_EQ(Refusal(Server("h2o"), asked), "");
  asked.chunk_size = 37;
  EXPECT_EQ(Refusal(Server("h2o"), asked),
            "chunk_size 37 may give chunks of 41 tokens and policy 'h2o' with cache_length 64, "
            "sinks 4, grace 20 allows 40; the largest chunk_size that fits is 36");
  asked.chunk_size = 36;
  EXPECT_EQ(Refusal(Server("h2o"), asked, 10, 10, {64}, 30),
            "chunk_size 36 may give chunks of 40 tokens and a pass of this server allows 30; the "
            "largest chunk_size that fits is 26");
  asked.max_chunk = 30;  // lowers the chunk size to 26
  EXPECT_EQ(Refusal(Server("h2o"), asked, 10, 10, {64}, 30), "");
  asked.max_chunk = 4;
  EXPECT_THAT(Refusal(Server("h2o"), asked), HasSubstr("max_chunk 4 is not 0 (none) or at least"));
  LanePolicy recent = Asks("last_recent");
  recent.cache_length = {20};
  EXPECT_THAT(Refusal(Server("last_recent"), recent), HasSubstr("allows 18; the largest"));
  LanePolicy dense = Asks("dense");
  dense.chunk_size = 512;
  EXPECT_EQ(Refusal(Server("dense"), dense, 10, 10, {64}, 16), "");
}

// A parameter that a policy would ignore is refused; a parameter that it has changes its rules.
TEST(ValidateLaneTest, EveryParameterCountsOrIsRefused) {
  struct Field {
    const char* name;
    unsigned bit;
    void (*set)(LanePolicy&);
  };
  const Field fields[] = {
      {"sinks", kSinks, [](LanePolicy& p) { p.sinks = 3; }},
      {"grace", kGrace, [](LanePolicy& p) { p.grace = 7; }},
      {"keep_initial_fraction", kKeepInitialFraction,
       [](LanePolicy& p) { p.keep_initial_fraction = 0.5; }},
      {"normalize_scores", kNormalizeScores, [](LanePolicy& p) { p.normalize_scores = true; }},
      {"protected range", kProtect,
       [](LanePolicy& p) {
         p.protect_begin = 4;
         p.protect_end = 9;
       }},
  };
  for (const std::string& name : CachePolicyNames()) {
    const std::unique_ptr<EvictionPolicy> policy = *MakePolicy(name);
    const LaneRules plain = *policy->Rules(LanePolicy{}, 64);
    for (const Field& field : fields) {
      LanePolicy asked;
      field.set(asked);
      const absl::StatusOr<LaneRules> rules = policy->Rules(asked, 64);
      if ((policy->fields() & field.bit) == 0) {
        EXPECT_THAT(rules.status().message(), HasSubstr(field.name)) << name;
        EXPECT_THAT(rules.status().message(), HasSubstr("no such parameter")) << name;
      } else {
        ASSERT_TRUE(rules.ok()) << rules.status();
        EXPECT_NE(std::memcmp(&*rules, &plain, sizeof(plain)), 0) << name << " " << field.name;
      }
    }
    LanePolicy asked;
    asked.max_chunk = 64;
    EXPECT_EQ(policy->Rules(asked, 64).ok(), (policy->fields() & kMaxChunk) != 0) << name;
  }
}

TEST(ValidateLaneTest, ParametersHaveLimits) {
  const auto refusal = [](const std::string& name, const auto& set) {
    LanePolicy asked;
    asked.policy = name;
    set(asked);
    return std::string((*MakePolicy(name))->Rules(asked, 32).status().message());
  };
  EXPECT_EQ(refusal("h2o", [](LanePolicy& p) { p.grace = 32; }),
            "grace 32 is not in [0, 31]: policy 'h2o', cache_length 32");
  EXPECT_EQ(refusal("last_recent", [](LanePolicy& p) { p.sinks = -1; }),
            "sinks -1 is not in [0, 31]: policy 'last_recent', cache_length 32");
  EXPECT_THAT(refusal("h2o", [](LanePolicy& p) { p.keep_initial_fraction = 1.5; }),
              HasSubstr("keep_initial_fraction 1.5 is not in [0, 1]"));
  EXPECT_THAT(refusal("h2o", [](LanePolicy& p) { p.keep_initial_fraction = 0.0 / 0.0; }),
              HasSubstr("keep_initial_fraction"));
  EXPECT_THAT(refusal("h2o",
                      [](LanePolicy& p) {
                        p.grace = 20;
                        p.sinks = 12;
                      }),
              HasSubstr("grace + sinks may be at most 31"));
  EXPECT_THAT(refusal("protected_last_recent",
                      [](LanePolicy& p) {
                        p.protect_begin = 9;
                        p.protect_end = 4;
                      }),
              HasSubstr("protected range [9, 4) is not a range of tokens"));
  EXPECT_THAT(refusal("protected_last_recent",
                      [](LanePolicy& p) {
                        p.protect_begin = 40;
                        p.protect_end = 44;
                      }),
              HasSubstr("begins beyond cache_length 32"));
  EXPECT_THAT(refusal("protected_last_recent",
                      [](LanePolicy& p) {
                        p.protect_end = 40;
                        p.max_protected_fraction = 1;
                      }),
              HasSubstr("leave no slot of cache_length 32"));
  EXPECT_EQ((*MakePolicy("last_recent"))->Rules(LanePolicy{}, 1).ok(), false);
  EXPECT_EQ((*MakePolicy("last_recent"))->Rules(LanePolicy{}, 7)->sinks, 1);
  EXPECT_EQ((*MakePolicy("last_recent"))->Rules(LanePolicy{}, 64)->sinks, 8);
  EXPECT_EQ((*MakePolicy("last_recent"))->Rules(LanePolicy{}, 4096)->sinks, 16);
}

TEST(ValidateLaneTest, WarnsOfCachesWithoutProtection) {
  EXPECT_THAT(LaneWarning(Asks("h2o"), {64}), HasSubstr("protects no slot"));
  LanePolicy kept = Asks("h2o");
  kept.sinks = 4;
  EXPECT_EQ(LaneWarning(kept, {64}), "");
  EXPECT_EQ(LaneWarning(Asks("last_recent"), {64}), "");
  EXPECT_EQ(LaneWarning(Asks("dense"), {64}), "");
}

TEST(CreateCacheTest, RefusesWhatCannotWork) {
  const auto device = OpenTestDevice(1);
  const auto refusal = [&](const CacheConfig& config, KvCacheShape shape) {
    const absl::Status bytes = KvCache::BytesFor(config, shape).status();
    EXPECT_EQ(KvCache::Create(*device, config, shape).status(), bytes);
    return std::string(bytes.message());
  };
  const KvCacheShape shape{.lanes = 1, .kv_heads = 1, .head_dim = 16, .length = 8, .max_tokens = 8};
  CacheConfig config = Server("h2o");
  EXPECT_EQ(refusal(config, shape), "");
  config.storage = "int3";
  EXPECT_EQ(refusal(config, shape),
            "cache storage 'int3' does not exist; known: plain, int8, int4, k8v4");
  config = Server("lru");
  EXPECT_THAT(refusal(config, shape),
              HasSubstr("cache policy 'lru' does not exist; known: dense,"));
  config = Server("dense", {"qh2o"});
  EXPECT_THAT(refusal(config, shape), HasSubstr("use storage int8, int4 or k8v4"));
  KvCacheShape odd = shape;
  odd.head_dim = 24;
  config = Server("dense");
  config.storage = "k8v4";
  EXPECT_THAT(refusal(config, odd), HasSubstr("multiple of 16, not 24"));
  odd = shape;
  odd.lanes = 0;
  EXPECT_EQ(refusal(config, odd), "lanes 0 < 1");
  odd = shape;
  odd.plain = DType::kQ4_0;
  EXPECT_THAT(refusal(config, odd), HasSubstr("f32, bf16 or f16, not q4_0"));
}

TEST(CreateCacheTest, BytesAreWhatIsAllocated) {
  const auto device = OpenTestDevice(1);
  for (const std::string& policy : CachePolicyNames()) {
    for (const std::string& storage : CacheStorageNames()) {
      CacheConfig config = Server(policy);
      config.storage = storage;
      const KvCacheShape shape{
          .lanes = 3, .kv_heads = 2, .head_dim = 80, .length = 100, .max_tokens = 50};
      const absl::StatusOr<KvCacheBytes> bytes = KvCache::BytesFor(config, shape);
      if (!bytes.ok()) continue;
      const auto cache = *KvCache::Create(*device, config, shape);
      EXPECT_EQ(cache->device_bytes(), 3 * bytes->per_lane + bytes->workspace);
      const auto sibling = *KvCache::Create(*device, config, shape, cache.get());
      EXPECT_EQ(sibling->device_bytes(), 3 * bytes->per_lane);
    }
  }
  // A dense bf16 lane of SmolLM2-135M: 22.5 KiB a token over 30 layers of 3 heads of 64, and the
  // positions.
  const KvCacheShape shape{.lanes = 1,
                           .kv_heads = 3,
                           .head_dim = 64,
                           .length = 1024,
                           .max_tokens = 8,
                           .plain = DType::kBF16};
  const size_t per_token = (KvCache::BytesFor(Server("dense"), shape)->per_lane * 30) / 1024;
  EXPECT_EQ(per_token / 512, (22 * 1024 + 512 + 30 * 3 * 4) / 512);
}

// Any bytes may come out of a session file: an error, never a crash, and the lane is closed.
TEST(SavedLaneTest, DamagedBytesAreRefused) {
  const auto device = OpenTestDevice(1);
  const AttentionSpec spec = PlainSpec(2, 1, 16);
  CacheConfig config = Server("h2o");
  config.policy.grace = 3;
  const KvCacheShape shape{
      .lanes = 2, .kv_heads = 1, .head_dim = 16, .length = 20, .max_tokens = 30};
  CacheDriver driver(*device, config, shape, spec);
  driver.Open(0, config.policy);
  for (int n : {20, 3, 1}) driver.Run({.lane = 0, .tokens = n, .stream = 1});
  const std::string good = *driver.cache().SaveLane(driver.stream(), 0);
  const auto restore = [&](const std::string& bytes) {
    return driver.cache().RestoreLane(driver.stream(), 1, bytes);
  };
  EXPECT_TRUE(restore(good).ok());
  for (size_t size = 0; size < good.size(); size += 1 + size / 50) {
    EXPECT_FALSE(restore(good.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(restore(good + "x").ok());
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    std::string bad = good;
    const size_t at = i < 1000 ? random() % 160 : random() % bad.size();  // the header above all
    bad[at] = static_cast<char>(random());
    if (restore(bad).ok()) {  // in K, V or scores: any bits will do
      driver.SetPosition(1, 24);
      driver.Run({.lane = 1, .tokens = 1 + i % 3, .stream = 2});
    }
  }
}

TEST(SavedLaneTest, OtherCachesAreRefusedByName) {
  const auto device = OpenTestDevice(1);
  const auto make = [&](CacheConfig config, int heads, int dim, int length) {
    return CacheDriver(
        *device, config,
        {.lanes = 1, .kv_heads = heads, .head_dim = dim, .length = length, .max_tokens = 30},
        PlainSpec(heads, heads, dim));
  };
  CacheDriver driver = make(Server("last_recent"), 2, 16, 20);
  driver.Open(0, Server("last_recent").policy);
  driver.Run({.lane = 0, .tokens = 7, .stream = 1});
  const std::string saved = *driver.cache().SaveLane(driver.stream(), 0);
  const auto refusal = [&](CacheDriver other) {
    const absl::Status status = other.cache().RestoreLane(other.stream(), 0, saved);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  CacheConfig int8 = Server("last_recent");
  int8.storage = "int8";
  EXPECT_EQ(refusal(make(Server("last_recent"), 3, 16, 20)),
            "saved lane has kv_heads 2, this cache 3");
  EXPECT_EQ(refusal(make(Server("last_recent"), 2, 32, 20)),
            "saved lane has head_dim 16, this cache 32");
  EXPECT_EQ(refusal(make(Server("last_recent"), 2, 16, 19)),
            "saved lane has cache_length 20, this cache 19");
  EXPECT_EQ(refusal(make(int8, 2, 16, 20)), "saved lane is of another storage than this cache");
  EXPECT_EQ(refusal(make(Server("h2o"), 2, 16, 20)), "saved lane's policy is not enabled here");
}

}  // namespace
}  // namespace keyline
