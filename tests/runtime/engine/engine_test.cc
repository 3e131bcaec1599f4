#include "runtime/engine/engine.h"

#include <chrono>
#include <memory>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;
using testing::RandomIds;
using testing::RecordingSink;
using testing::ServeAll;
using testing::TinySetup;
using testing::WithPipeline;

constexpr int kVocab = 320;

Request Generate(int prompt, int new_tokens, uint32_t seed) {
  Request request;
  request.prompt = RandomIds(prompt, kVocab, seed);
  request.response.text = false;
  request.stop.max_new_tokens = new_tokens;
  if (seed % 2 == 1) {
    request.sampling = {.temperature = 1.0f, .top_k = 50, .top_p = 0.95f, .seed = seed};
  }
  return request;
}

// Serves `requests` together; returns what each heard.
std::vector<std::shared_ptr<RecordingSink>> Serve(const TinySetup& setup,
                                                  const std::vector<Request>& requests) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  WithPipeline(setup, [&](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    sinks = ServeAll(engine, requests);
    const EngineLoad load = engine.load();
    EXPECT_EQ(load.running, 0);
    EXPECT_EQ(load.waiting, 0);
    EXPECT_EQ(load.requests_finished, requests.size());
  });
  return sinks;
}

TEST(Engine, SameTokensAloneBatchedOnAnyRanksAndDepth) {
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) requests.push_back(Generate(1 + i * 19, 12 + i, i));
  std::vector<std::vector<int32_t>> expected;
  for (const Request& request : requests) {
    const auto sinks = Serve({.lanes = 1}, {request});
    ASSERT_TRUE(sinks[0]->status.ok()) << sinks[0]->status;
    EXPECT_EQ(sinks[0]->starts, 1);
    EXPECT_EQ(sinks[0]->endings, 1);
    EXPECT_EQ(static_cast<int>(sinks[0]->tokens.size()), request.stop.max_new_tokens);
    EXPECT_EQ(sinks[0]->finish.reason, FinishReason::kLength);
    expected.push_back(sinks[0]->tokens);
  }
  for (int ranks = 1; ranks <= 3; ++ranks) {
    for (int depth : {1, ranks, ranks + 1}) {
      const auto sinks = Serve({.ranks = ranks, .pipeline_depth = depth, .lanes = 4}, requests);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(sinks[i]->tokens, expected[i]) << ranks << " ranks, depth " << depth;
      }
    }
  }
}

TEST(Engine, EvictingCachesGiveTheSameTokensBatchedAndAlone) {
  TinySetup setup{.lanes = 1, .chunk_size = 16, .cache_length = 40, .policy = "last_recent"};
  std::vector<Request> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(Generate(30 + i * 21, 20, i));
  std::vector<std::vector<int32_t>> expected;
  for (const Request& request : requests) expected.push_back(Serve(setup, {request})[0]->tokens);
  setup.lanes = 3;
  setup.ranks = 2;
  const auto sinks = Serve(setup, requests);
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(sinks[i]->tokens, expected[i]);
}

TEST(Engine, StopsAtAStopToken) {
  const auto free = Serve({}, {Generate(9, 20, 4)})[0]->tokens;
  Request request = Generate(9, 20, 4);
  request.stop.stop_token_ids = {free[5]};
  size_t first = 0;
  while (free[first] != free[5]) ++first;
  const auto sink = Serve({}, {request})[0];
  EXPECT_EQ(sink->finish.reason, FinishReason::kStop);
  EXPECT_EQ(sink->tokens, std::vector<int32_t>(free.begin(), free.begin() + first));
  request.stop.include_stop = true;
  EXPECT_EQ(Serve({}, {request})[0]->tokens.size(), first + 1);
  request.stop.min_new_tokens = static_cast<int>(first) + 3;
  EXPECT_GT(Serve({}, {request})[0]->tokens.size(), first + 1);
}

TEST(Engine, ReportsLogProbs) {
  Request request = Generate(9, 5, 4);
  request.response.logprobs = true;
  const auto sink = Serve({}, {request})[0];
  ASSERT_EQ(sink->logprobs.size(), 5u);
  for (float logprob : sink->logprobs) EXPECT_LT(logprob, 0);
}

TEST(Engine, ScoreAgreesHoweverItIsFed) {
  Request request;
  request.prompt = RandomIds(90, kVocab, 3);
  request.response.text = false;
  request.score = {.enabled = true};
  const auto whole = Serve({.max_pass_tokens = 128}, {request})[0]->finish.score->logprobs;
  ASSERT_EQ(whole.size(), 89u);
  EXPECT_EQ(Serve({.ranks = 2}, {request})[0]->finish.score->logprobs, whole);
  request.score.decode_tail = 20;
  EXPECT_EQ(Serve({.ranks = 3}, {request})[0]->finish.score->logprobs, whole);
}

TEST(Engine, TheDefaultChunkIsWhatFitsTheCacheAsked) {
  TinySetup setup{.chunk_size = 32, .cache_length = 64, .policy = "last_recent"};
  Request request = Generate(100, 4, 0);
  LanePolicy& policy = request.cache.emplace();
  policy.policy = "last_recent";
  policy.cache_length = {24};
  policy.sinks = 4;
  request.response.cache_report = true;
  const auto by_default = Serve(setup, {request})[0];
  ASSERT_TRUE(by_default->status.ok()) << by_default->status;
  EXPECT_EQ(by_default->finish.cache->chunk_size, 16);
  policy.chunk_size = 16;
  EXPECT_EQ(Serve(setup, {request})[0]->tokens, by_default->tokens);
  // Where more fits, it is the server's.
  policy.chunk_size.reset();
  policy.cache_length = {60};
  EXPECT_EQ(Serve(setup, {request})[0]->finish.cache->chunk_size, 32);
}

TEST(Engine, CancelFreesTheLaneForTheNextRequest) {
  WithPipeline({.ranks = 2, .lanes = 1, .cache_length = 500}, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    auto first = std::make_shared<RecordingSink>();
    auto second = std::make_shared<RecordingSink>();
    const auto id = engine.Submit(Generate(5, 400, 0), first);
    ASSERT_TRUE(id.ok());
    ASSERT_TRUE(engine.Submit(Generate(5, 3, 2), second).ok());
    first->on_tokens = [&] {
      if (first->tokens.size() == 4) engine.Cancel(*id);
    };
    engine.Drain();
    ASSERT_TRUE(engine.Run().ok());
    EXPECT_EQ(first->status.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(first->endings, 1);
    EXPECT_LE(first->tokens.size(), 5u);
    EXPECT_TRUE(second->status.ok()) << second->status;
    EXPECT_EQ(engine.load().requests_cancelled, 1u);
  });
  // What the second request heard does not depend on its lane's past.
  const auto alone = Serve({}, {Generate(5, 3, 2)});
  EXPECT_EQ(alone[0]->tokens.size(), 3u);
}

TEST(Engine, DeadlinesEndRequests) {
  WithPipeline({.lanes = 1, .cache_length = 500}, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    auto sink = std::make_shared<RecordingSink>();
    Request request = Generate(5, 400, 0);
    request.deadline = absl::Now() - absl::Seconds(1);
    ASSERT_TRUE(engine.Submit(request, sink).ok());
    engine.Drain();
    ASSERT_TRUE(engine.Run().ok());
    EXPECT_EQ(sink->status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(engine.load().running, 0);
  });
}

TEST(Engine, RefusesWhenTheQueueIsFullOrDraining) {
  WithPipeline({}, [](Coordinator& coordinator) {
    EngineOptions options;
    options.max_queued_requests = 2;
    Engine engine(coordinator, nullptr, options);
    auto sink = std::make_shared<RecordingSink>();
    ASSERT_TRUE(engine.Submit(Generate(5, 2, 0), sink).ok());
    ASSERT_TRUE(engine.Submit(Generate(5, 2, 0), std::make_shared<RecordingSink>()).ok());
    const auto third = engine.Submit(Generate(5, 2, 0), std::make_shared<RecordingSink>());
    EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(third.status().message()), HasSubstr("2 requests (limit 2)"));
    engine.Drain();
    const auto late = engine.Submit(Generate(5, 2, 0), std::make_shared<RecordingSink>());
    EXPECT_EQ(late.status().code(), absl::StatusCode::kUnavailable);
    ASSERT_TRUE(engine.Run().ok());
    EXPECT_TRUE(sink->status.ok());
  });
}

TEST(Engine, ServesUntilStopped) {
  WithPipeline({.ranks = 2}, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    std::thread client([&] {
      auto sink = std::make_shared<RecordingSink>();
      ASSERT_TRUE(engine.Submit(Generate(5, 3, 0), sink).ok());
      while (engine.load().requests_finished == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      engine.Stop();
    });
    EXPECT_TRUE(engine.Run().ok());
    client.join();
  });
}

struct BadRequest {
  const char* name;
  void (*spoil)(Request&);
  const char* message;
};

class Refusal : public ::testing::TestWithParam<BadRequest> {};

TEST_P(Refusal, NamesFieldAndLimit) {
  WithPipeline({.cache_length = 40}, [](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    Request request = Generate(5, 3, 0);
    GetParam().spoil(request);
    const auto id = engine.Submit(request, std::make_shared<RecordingSink>());
    EXPECT_EQ(id.status().code(), absl::StatusCode::kInvalidArgument) << id.status();
    EXPECT_THAT(std::string(id.status().message()), HasSubstr(GetParam().message));
    engine.Stop();
    EXPECT_TRUE(engine.Run().ok());
  });
}

INSTANTIATE_TEST_SUITE_P(
    Fields, Refusal,
    ::testing::Values(
        BadRequest{"empty", [](Request& r) { r.prompt.clear(); }, "prompt: must have at least one"},
        BadRequest{"token", [](Request& r) { r.prompt[2] = 320; },
                   "prompt: token id 320 at index 2 is not within [0, 320)"},
        BadRequest{"long", [](Request& r) { r.prompt.assign(513, 1); },
                   "prompt: 513 tokens; this model has 512 positions"},
        BadRequest{"dense", [](Request& r) { r.stop.max_new_tokens = 37; }, "40"},
        BadRequest{"zero", [](Request& r) { r.stop.max_new_tokens = 0; },
                   "max_new_tokens: must be >= 1, got 0"},
        BadRequest{"min", [](Request& r) { r.stop.min_new_tokens = 4; },
                   "min_new_tokens: must be within [0, max_new_tokens = 3], got 4"},
        BadRequest{"hot", [](Request& r) { r.sampling.temperature = -1; }, "temperature: must be"},
        BadRequest{"nan", [](Request& r) { r.sampling.top_p = std::nanf(""); }, "top_p: must be"},
        BadRequest{"policy", [](Request& r) { r.cache.emplace().policy = "h2o"; }, "h2o"},
        BadRequest{"marker",
                   [](Request& r) {
                     r.cache.emplace().policy = "protected_last_recent";
                     r.cache->protect_until = "x";
                   },
                   "protect_until: this model has no tokenizer"},
        BadRequest{"prefix",
                   [](Request& r) {
                     r.prefix_tokens = 1;
                     r.embed.enabled = true;
                   },
                   "prefix: not for a request that reads every token"},
        BadRequest{"text", [](Request& r) { r.response.text = true; }, "text: this model has no"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace keyline
