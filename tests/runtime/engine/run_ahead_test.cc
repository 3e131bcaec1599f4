// Steps that are launched before the tokens that they begin with are known to the host
// (Coordinator::RunAhead): nobody hears anything else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/pipeline/pipeline_spec.h"
#include "tests/fixtures/tiny_pipeline.h"
#include "tests/runtime/engine/session_laws.h"

namespace keyline {
namespace {

using testing::AskSession;
using ::testing::Each;
using testing::kVocab;
using testing::PolicyFor;
using testing::RandomIds;
using testing::RecordingSink;
using testing::ServeAll;
using ::testing::SizeIs;
using testing::TinySetup;
using testing::TokensOf;
using testing::WhileServing;
using testing::WithPipeline;

Request Generate(int prompt, int new_tokens, uint32_t seed) {
  Request request;
  request.prompt = RandomIds(prompt, kVocab, seed);
  request.response.text = false;
  request.response.logprobs = true;
  request.response.cache_report = true;
  request.stop.max_new_tokens = new_tokens;
  if (seed % 2 == 1) request.sampling = {.temperature = 1.0f, .top_k = 50, .seed = seed};
  return request;
}

std::vector<Request> Requests(int count, const std::function<Request(int i)>& make) {
  std::vector<Request> requests;
  requests.reserve(count);
  for (int i = 0; i < count; ++i) requests.push_back(make(i));
  return requests;
}

struct Heard {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  EngineLoad load;
  std::vector<LayerCacheStats> stats;
};

Heard Serve(TinySetup setup, const std::vector<Request>& requests, bool ahead) {
  Heard heard;
  setup.run_ahead = ahead;
  WithPipeline(setup, [&](Coordinator& coordinator) {
    EXPECT_EQ(coordinator.runs_ahead(), ahead) << "a CPU has nothing to gain";
    Engine engine(coordinator, nullptr, {});
    heard.sinks = ServeAll(engine, requests);
    heard.load = engine.load();
    heard.stats = engine.cache_stats();
  });
  return heard;
}

void ExpectTheSame(const TinySetup& setup, const std::vector<Request>& requests) {
  const Heard plain = Serve(setup, requests, false);
  const Heard ahead = Serve(setup, requests, true);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    const RecordingSink& expected = *plain.sinks[i];
    const RecordingSink& actual = *ahead.sinks[i];
    ASSERT_TRUE(actual.status.ok()) << actual.status;
    EXPECT_EQ(actual.tokens, expected.tokens);
    EXPECT_EQ(actual.logprobs, expected.logprobs);
    EXPECT_EQ(actual.finish.reason, expected.finish.reason);
    ASSERT_EQ(actual.finish.cache->layers.size(), expected.finish.cache->layers.size());
    for (size_t l = 0; l < expected.finish.cache->layers.size(); ++l) {
      EXPECT_EQ(actual.finish.cache->layers[l].slots_used,
                expected.finish.cache->layers[l].slots_used);
      EXPECT_EQ(actual.finish.cache->layers[l].evicted, expected.finish.cache->layers[l].evicted);
    }
  }
  EXPECT_EQ(ahead.load.generated_tokens, plain.load.generated_tokens);
  ASSERT_EQ(ahead.stats.size(), plain.stats.size());
  for (size_t l = 0; l < plain.stats.size(); ++l) {
    EXPECT_EQ(ahead.stats[l].evicted, plain.stats[l].evicted) << l;
    EXPECT_EQ(ahead.stats[l].slots_used, 0) << l;
  }
}

TEST(RunAhead, SequencesOfAllLengthsHearTheSame) {
  const std::vector<Request> requests =
      Requests(9, [](int i) { return Generate(1 + i * 17, 1 + i * 3, i); });
  for (const int lanes : {1, 3}) {
    SCOPED_TRACE(lanes);
    ExpectTheSame({.lanes = lanes}, requests);
    ExpectTheSame({.lanes = lanes, .chunk_size = 16, .cache_length = 40, .policy = "last_recent"},
                  requests);
    ExpectTheSame({.lanes = lanes, .chunk_size = 16, .cache_length = 40, .policy = "h2o"},
                  requests);
  }
}

// Such a step's tokens come in several parts, to one place, and are waited for; when some have
// ended, steps run ahead.
TEST(RunAhead, MoreSequencesThanRowsOfLogitsHearTheSame) {
  const int lanes = kLogitRows + 5;
  const std::vector<Request> requests =
      Requests(lanes + 3, [](int i) { return Generate(1 + i % 7, 2 + i % 9, i); });
  ExpectTheSame({.random_layers = 1, .lanes = lanes, .max_pass_tokens = 128}, requests);
}

// A step is in vain where the token before it stops the sequence: its lane goes to the next one.
TEST(RunAhead, AStopTokenEndsASequenceThatIsAhead) {
  for (const char* policy : {"last_recent", "h2o"}) {
    const TinySetup setup{
        .lanes = 2, .chunk_size = 16, .cache_length = 40, .policy = policy, .threads = 1};
    std::vector<Request> requests = Requests(6, [](int i) { return Generate(33 + i * 5, 24, i); });
    const Heard free = Serve(setup, requests, false);
    for (size_t i = 0; i < requests.size(); ++i) {
      requests[i].stop.stop_token_ids = {free.sinks[i]->tokens[3 + i]};
    }
    ExpectTheSame(setup, requests);
    const Heard ahead = Serve(setup, requests, true);
    for (const auto& sink : ahead.sinks) EXPECT_EQ(sink->finish.reason, FinishReason::kStop);
    EXPECT_GT(ahead.load.steps, Serve(setup, requests, false).load.steps) << "none was in vain";
  }
}

// Those who ask for more than tokens are waited for; they mix with those who do not.
TEST(RunAhead, ScoresAndTopLogProbsComeInBetween) {
  std::vector<Request> requests = Requests(6, [](int i) { return Generate(20 + i * 9, 14, i); });
  requests[2].response.top_logprobs = 3;
  Request score;
  score.prompt = RandomIds(50, kVocab, 8);
  score.response.text = false;
  score.response.cache_report = true;
  score.score = {.enabled = true, .decode_tail = 12};
  requests.insert(requests.begin() + 1, score);
  ExpectTheSame({.lanes = 3}, requests);
}

TEST(RunAhead, ACancelledSequenceLeavesItsLane) {
  WithPipeline({.lanes = 1, .run_ahead = true}, [&](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    const auto first = std::make_shared<RecordingSink>();
    const auto second = std::make_shared<RecordingSink>();
    const auto id = engine.Submit(Generate(12, 200, 2), first);
    ASSERT_TRUE(id.ok()) << id.status();
    first->on_tokens = [&] {
      if (first->tokens.size() == 5) engine.Cancel(*id);
    };
    ASSERT_TRUE(engine.Submit(Generate(30, 10, 3), second).ok());
    engine.Drain();
    EXPECT_TRUE(engine.Run().ok());
    EXPECT_EQ(first->status.code(), absl::StatusCode::kCancelled);
    EXPECT_LT(first->tokens.size(), 8u);
    EXPECT_EQ(second->tokens, Serve({.lanes = 1}, {Generate(30, 10, 3)}, false).sinks[0]->tokens);
  });
}

// A turn leaves the lane as the next one must find it, with others beside it that run ahead.
TEST(RunAhead, SessionsHearTheSame) {
  const auto turns = [](bool ahead) {
    std::vector<std::vector<int32_t>> heard;
    const TinySetup setup{.lanes = 2,
                          .chunk_size = 16,
                          .cache_length = 40,
                          .policy = "last_recent",
                          .run_ahead = ahead};
    WhileServing(setup, {}, [&](Engine& engine) {
      const auto session =
          engine.sessions()->Create({.cache = PolicyFor("last_recent", 40, 16), .prefix = {}});
      ASSERT_TRUE(session.ok()) << session.status();
      for (int turn = 0; turn < 3; ++turn) {
        const auto beside = std::make_shared<RecordingSink>();
        EXPECT_TRUE(engine.Submit(Generate(20, 40, 4), beside).ok());
        heard.push_back(TokensOf(
            engine, AskSession(engine, session->id, RandomIds(20 + turn, kVocab, turn), 9)));
      }
    });
    return heard;
  };
  const auto expected = turns(false);
  ASSERT_THAT(expected, Each(SizeIs(9)));
  EXPECT_EQ(turns(true), expected);
}

}  // namespace
}  // namespace keyline
