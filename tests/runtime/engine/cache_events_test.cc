// What watchers hear of the caches and what the sums say, against a replay of the events and
// against traces.

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "gtest/gtest.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using testing::RandomIds;
using testing::RecordingSink;
using testing::TinySetup;
using testing::WithPipeline;

constexpr int kVocab = 320;
constexpr int kLayers = 3;
constexpr int kHeads = 2;

class Recorder : public CacheWatcher {
 public:
  void OnCacheEvent(const std::shared_ptr<const CacheEvent>& event) override {
    events.push_back(*event);
  }
  std::vector<CacheEvent> events;
};

// A lane's slots of one KV head, as the events say.
struct Replay {
  std::vector<int> slots;
  explicit Replay(int length) : slots(length, -1) {}

  // Fails the test where the event does not fit what is there.
  void Apply(const CacheEvent& event, const HeadCacheEvent& head) {
    std::vector<int> before = slots;
    ASSERT_EQ(head.slots.size(), static_cast<size_t>(event.tokens));
    ASSERT_EQ(head.moved_from.size(), head.moved_to.size());
    const std::vector<int> old = slots;
    for (size_t i = 0; i < head.moved_from.size(); ++i) {
      slots.at(head.moved_to[i]) = old.at(head.moved_from[i]);
    }
    for (int i = 0; i < event.tokens; ++i) slots.at(head.slots[i]) = event.first_position + i;
    std::vector<int> lost;
    for (int position : before) {
      if (position >= 0 && std::find(slots.begin(), slots.end(), position) == slots.end()) {
        lost.push_back(position);
      }
    }
    std::sort(lost.begin(), lost.end());
    EXPECT_EQ(head.evicted, lost) << "chunk at " << event.first_position;
  }

  std::vector<int> Kept() const {
    std::vector<int> kept;
    for (int position : slots) {
      if (position >= 0) kept.push_back(position);
    }
    std::sort(kept.begin(), kept.end());
    return kept;
  }
};

Request Score(int tokens, uint32_t seed, const LanePolicy& policy) {
  Request request;
  request.label = "score";
  request.prompt = RandomIds(tokens, kVocab, seed);
  request.response.text = false;
  request.score = {.enabled = true, .trace = true, .decode_tail = 7};
  request.cache = policy;
  return request;
}

class Watched : public ::testing::TestWithParam<int> {};

TEST_P(Watched, EventsReplayToWhatIsKept) {
  const int ranks = GetParam();
  TinySetup setup{.ranks = ranks, .chunk_size = 8, .cache_length = 40, .policy = "h2o"};
  LanePolicy policy;
  policy.policy = "h2o";
  policy.cache_length = {40};
  policy.chunk_size = 8;
  policy.grace = 10;
  policy.sinks = 2;
  auto watcher = std::make_shared<Recorder>();
  auto sink = std::make_shared<RecordingSink>();
  std::vector<LayerCacheStats> at_end;
  WithPipeline(setup, [&](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    engine.Watch(watcher);
    ASSERT_TRUE(engine.Submit(Score(100, 1, policy), sink).ok());
    engine.Drain();
    ASSERT_TRUE(engine.Run().ok());
    at_end = engine.cache_stats();
  });
  ASSERT_TRUE(sink->status.ok()) << sink->status;
  const std::vector<ChunkTrace>& trace = sink->finish.score->trace;
  ASSERT_EQ(watcher->events.size(), trace.size());
  std::vector<std::vector<Replay>> lanes(kLayers, std::vector<Replay>(kHeads, Replay(40)));
  int64_t evicted = 0;
  for (size_t c = 0; c < trace.size(); ++c) {
    const CacheEvent& event = watcher->events[c];
    EXPECT_EQ(event.label, "score");
    EXPECT_EQ(event.first_position, trace[c].start);
    EXPECT_EQ(event.tokens, trace[c].tokens);
    ASSERT_EQ(event.layers.size(), static_cast<size_t>(kLayers));
    for (int l = 0; l < kLayers; ++l) {
      ASSERT_EQ(event.layers[l].size(), static_cast<size_t>(kHeads));
      for (int h = 0; h < kHeads; ++h) {
        lanes[l][h].Apply(event, event.layers[l][h]);
        EXPECT_EQ(lanes[l][h].Kept(), trace[c].kept[l][h]) << "layer " << l << ", head " << h;
      }
    }
    evicted += static_cast<int64_t>(event.layers[0][0].evicted.size());
  }
  EXPECT_EQ(evicted, 60);
  for (const LayerCacheStats& layer : at_end) {
    EXPECT_EQ(layer.slots_used, 0);
    EXPECT_EQ(layer.evicted, evicted);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Watched, ::testing::Values(1, 2, 3));

TEST(CacheEvents, NothingIsRecordedForNobody) {
  WithPipeline({.ranks = 2}, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    auto gone = std::make_shared<Recorder>();
    engine.Watch(gone);
    gone.reset();
    auto sink = std::make_shared<RecordingSink>();
    Request request;
    request.prompt = RandomIds(10, kVocab, 2);
    request.stop.max_new_tokens = 4;
    request.response.text = false;
    ASSERT_TRUE(engine.Submit(request, sink).ok());
    auto late = std::make_shared<Recorder>();
    sink->on_tokens = [&] {
      if (sink->tokens.size() == 2) engine.Watch(late);
    };
    engine.Drain();
    ASSERT_TRUE(engine.Run().ok());
    // Only what was launched after the watch began.
    ASSERT_EQ(late->events.size(), 2u);
    EXPECT_EQ(late->events[0].first_position, 11);
    EXPECT_EQ(late->events[1].first_position, 12);
  });
}

TEST(CacheStats, CountWhatRunsAndWhatWasDropped) {
  TinySetup setup{.ranks = 2, .lanes = 3, .chunk_size = 8, .cache_length = 32};
  setup.policy = "last_recent";
  WithPipeline(setup, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    auto sink = std::make_shared<RecordingSink>();
    Request request;
    request.prompt = RandomIds(20, kVocab, 3);
    request.stop.max_new_tokens = 30;
    request.response.text = false;
    ASSERT_TRUE(engine.Submit(request, sink).ok());
    std::vector<LayerCacheStats> during;
    sink->on_tokens = [&] {
      // The prompt and five tokens have been launched when the sixth token is known.
      if (sink->tokens.size() == 6) during = engine.cache_stats();
    };
    engine.Drain();
    ASSERT_TRUE(engine.Run().ok());
    ASSERT_EQ(during.size(), static_cast<size_t>(kLayers));
    const std::vector<LayerCacheStats> after = engine.cache_stats();
    for (int l = 0; l < kLayers; ++l) {
      EXPECT_EQ(during[l].layer, l);
      EXPECT_EQ(during[l].rank, l == 2 ? 1 : after[l].rank);
      EXPECT_EQ(during[l].capacity, 3 * 32);
      EXPECT_EQ(during[l].slots_used, 25);
      EXPECT_EQ(during[l].evicted, 0);
      EXPECT_GT(during[l].bytes, 3 * 32 * kHeads * 2 * 4);
      EXPECT_EQ(after[l].slots_used, 0);
      EXPECT_EQ(after[l].evicted, 20 + 29 - 32);
    }
  });
}

}  // namespace
}  // namespace keyline
