// Snapshots of prompt prefixes: a hit and a miss give the same tokens.
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "runtime/engine/prefix_store.h"
#include "tests/runtime/engine/session_laws.h"

namespace keyline {
namespace {

using namespace testing;  // NOLINT: the fixtures

class Prefix : public ::testing::TestWithParam<std::tuple<const char*, const char*, int>> {};

TEST_P(Prefix, HitAndMissGiveTheSameTokens) {
  const auto [name, storage, prefix] = GetParam();
  const bool dense = std::string(name) == "dense";
  const int length = dense ? 256 : 48;
  const LanePolicy policy = PolicyFor(name, length, 16);
  TinySetup setup{.lanes = 2, .cache_length = length, .policy = name, .storage = storage};
  const std::vector<int32_t> system = RandomIds(prefix, kVocab, 1);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 3; ++i) {
    prompts.push_back(system);
    const auto rest = RandomIds(9 + 14 * i, kVocab, 5 + i);
    prompts.back().insert(prompts.back().end(), rest.begin(), rest.end());
    expected.push_back(FeedByHand(setup, policy, {{prompts.back(), 10}}, prefix).answers[0]);
  }
  for (const int ranks : {1, 2}) {
    setup.ranks = ranks;
    WhileServing(setup, {}, [&](Engine& engine) {
      for (int i = 0; i < 3; ++i) {
        Request request = Ask(prompts[i], 10);
        request.cache = policy;
        request.prefix_tokens = prefix;
        const auto sink = Hear(engine, request);
        ASSERT_TRUE(sink->status.ok()) << sink->status;
        EXPECT_EQ(sink->tokens, expected[i]) << ranks << " ranks, request " << i;
        EXPECT_EQ(sink->finish.usage.prompt_tokens, static_cast<int>(prompts[i].size()));
        EXPECT_EQ(sink->finish.usage.cached_prompt_tokens, i == 0 ? 0 : prefix);
      }
      EXPECT_EQ(engine.load().prompt_tokens,
                prompts[0].size() + prompts[1].size() + prompts[2].size() - 2 * prefix);
      // Sessions that begin with it share it.
      const auto session = engine.sessions()->Create({.cache = policy, .prefix = system});
      ASSERT_TRUE(session.ok()) << session.status();
      const std::vector<int32_t> rest(prompts[1].begin() + prefix, prompts[1].end());
      const auto sink = Hear(engine, AskSession(engine, session->id, rest, 10));
      EXPECT_EQ(sink->tokens, expected[1]);
      EXPECT_EQ(sink->finish.usage.cached_prompt_tokens, prefix);
    });
    // Without memory for snapshots: the same.
    EngineOptions none;
    none.max_prefix_bytes = 0;
    WhileServing(setup, none, [&](Engine& engine) {
      for (const int i : {1, 1}) {
        Request request = Ask(prompts[i], 10);
        request.cache = policy;
        request.prefix_tokens = prefix;
        const auto sink = Hear(engine, request);
        EXPECT_EQ(sink->tokens, expected[i]);
        EXPECT_EQ(sink->finish.usage.cached_prompt_tokens, 0);
      }
    });
  }
}

// Prefixes shorter than the cache, as long, and longer, so that it has evicted by then.
INSTANTIATE_TEST_SUITE_P(
    Caches, Prefix,
    ::testing::Combine(::testing::Values("dense", "last_recent", "h2o", "h2o_vnorm"),
                       ::testing::Values("plain", "int8"), ::testing::Values(21, 48, 90)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param) + "_" +
             std::to_string(std::get<2>(info.param));
    });

TEST(PrefixRequest, MarkMustLeaveTokens) {
  WhileServing({}, {}, [](Engine& engine) {
    for (const int prefix : {-1, 4, 5}) {
      Request request = Ask({1, 2, 3, 4}, 2);
      request.prefix_tokens = prefix;
      EXPECT_EQ(Hear(engine, request)->status.code(), absl::StatusCode::kInvalidArgument);
    }
  });
}

LaneImagePtr Image(size_t bytes) {
  auto image = std::make_shared<LaneImage>();
  image->layers = {std::string(bytes, 'x')};
  return image;
}

TEST(PrefixStore, TheLeastRecentlyUsedGoesFirst) {
  PrefixStore store(330);
  for (const char* key : {"a", "b", "c"}) {
    EXPECT_TRUE(store.StartMaking(key));
    EXPECT_FALSE(store.StartMaking(key)) << "somebody makes it already";
    store.Insert(key, Image(100));
    EXPECT_FALSE(store.StartMaking(key)) << "it is there";
  }
  EXPECT_EQ(store.size(), 3);
  EXPECT_NE(store.Find("a"), nullptr);
  store.Insert("d", Image(100));
  EXPECT_EQ(store.Find("b"), nullptr);
  EXPECT_NE(store.Find("a"), nullptr);
  EXPECT_NE(store.Find("c"), nullptr);
  store.Insert("e", Image(1000));  // larger than all: not kept, and nobody goes for it
  EXPECT_EQ(store.Find("e"), nullptr);
  EXPECT_EQ(store.size(), 3);
  EXPECT_LE(store.bytes(), 330);
  EXPECT_TRUE(store.StartMaking("f"));
  store.Abandon("f");
  EXPECT_TRUE(store.StartMaking("f"));
}

TEST(PrefixKey, EveryParameterOfThePolicyCounts) {
  const std::vector<int32_t> tokens = {1, 2, 3};
  const LanePolicy policy = PolicyFor("h2o", 64, 16);
  const std::string key = PrefixKey(policy, tokens.data(), 3);
  EXPECT_EQ(PrefixKey(policy, tokens.data(), 3), key);
  EXPECT_NE(PrefixKey(policy, tokens.data(), 2), key);
  const auto changed = [&](const std::function<void(LanePolicy&)>& change) {
    LanePolicy other = policy;
    change(other);
    return PrefixKey(other, tokens.data(), 3) != key;
  };
  EXPECT_TRUE(changed([](LanePolicy& p) { p.policy = "h2o_vnorm"; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.cache_length = {65}; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.chunk_size = 17; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.sinks = 2; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.grace = 9; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.keep_initial_fraction = 0.1; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.normalize_scores = false; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.max_chunk = 12; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.protect_begin = 1; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.protect_end = 1; }));
  EXPECT_TRUE(changed([](LanePolicy& p) { p.max_protected_fraction = 0.1; }));
}

}  // namespace
}  // namespace keyline
