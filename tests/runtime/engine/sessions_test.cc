#include "runtime/engine/sessions.h"

#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>
#include <string>
#include <tuple>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/engine/session_laws.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using namespace testing;  // NOLINT: the fixtures
using ::testing::HasSubstr;

// The tiny model's first chunk is 48 tokens; then chunks of 16.
constexpr int kLength = 48;
constexpr int kChunk = 16;

TinySetup Tiny(const std::string& policy, const std::string& storage = "plain") {
  const bool dense = policy == "dense";
  return {.lanes = 2, .cache_length = dense ? 256 : kLength, .policy = policy, .storage = storage};
}

LanePolicy Policy(const std::string& name) {
  return PolicyFor(name, name == "dense" ? 256 : kLength, kChunk);
}

std::vector<Turn> Turns() {
  return {
      {RandomIds(30, kVocab, 1), 9}, {RandomIds(41, kVocab, 2), 12}, {RandomIds(5, kVocab, 3), 7}};
}

template <class T>
absl::StatusOr<T> Await(const std::function<void(SessionStore::Done<T>)>& call) {
  std::promise<absl::StatusOr<T>> promise;
  call([&](absl::StatusOr<T> result) { promise.set_value(std::move(result)); });
  return promise.get_future().get();
}

absl::StatusOr<SessionInfo> Fork(Engine& engine, const std::string& id) {
  return Await<SessionInfo>([&](auto done) { engine.sessions()->Fork(id, done); });
}

absl::StatusOr<SavedSession> Save(Engine& engine, const std::string& id) {
  return Await<SavedSession>([&](auto done) { engine.sessions()->Save(id, done); });
}

std::string Create(Engine& engine, const LanePolicy& policy, std::vector<int32_t> prefix = {}) {
  const auto info = engine.sessions()->Create({.cache = policy, .prefix = std::move(prefix)});
  EXPECT_TRUE(info.ok()) << info.status();
  return info.ok() ? info->id : "";
}

EngineOptions WithDir(const TempDir& dir) {
  EngineOptions options;
  options.sessions.dir = dir.path();
  options.sessions.model = "tiny";
  return options;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string FileOf(const TempDir& dir, const std::string& name) {
  return dir.path() + "/" + name + ".kvsession";
}

class Law : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(Law, TurnsAreTheSameTokensAndTheSameCacheAsWithoutASession) {
  const auto [name, storage] = GetParam();
  TinySetup setup = Tiny(name, storage);
  const Conversation expected = FeedByHand(setup, Policy(name), Turns());
  for (const int ranks : {1, 3}) {
    const TempDir dir;
    setup.ranks = ranks;
    WhileServing(setup, WithDir(dir), [&](Engine& engine) {
      const std::string id = Create(engine, Policy(name));
      int fed = 0;
      for (size_t t = 0; t < Turns().size(); ++t) {
        const Turn turn = Turns()[t];
        const auto sink = Hear(engine, AskSession(engine, id, turn.prompt, turn.new_tokens));
        ASSERT_TRUE(sink->status.ok()) << sink->status;
        EXPECT_EQ(sink->tokens, expected.answers[t]) << ranks << " ranks, turn " << t;
        EXPECT_EQ(sink->finish.usage.cached_prompt_tokens, fed);
        const int before = t == 0 ? 0 : fed + 1;  // with the token that was pending
        EXPECT_EQ(sink->finish.usage.prompt_tokens, before + static_cast<int>(turn.prompt.size()));
        fed = sink->finish.usage.prompt_tokens + turn.new_tokens - 1;
      }
      const auto saved = Save(engine, id);
      ASSERT_TRUE(saved.ok()) << saved.status();
      const auto state = DecodeSession(ReadAll(FileOf(dir, saved->name)), "tiny");
      ASSERT_TRUE(state.ok()) << state.status();
      EXPECT_EQ(state->image->layers, expected.layers);
      EXPECT_EQ(state->tokens, fed);
      EXPECT_EQ(state->pending, std::vector<int32_t>{expected.answers.back().back()});
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Caches, Law,
    ::testing::Values(std::tuple("dense", "plain"), std::tuple("last_recent", "plain"),
                      std::tuple("h2o", "plain"), std::tuple("h2o_vnorm", "int8"),
                      std::tuple("qh2o", "k8v4"), std::tuple("last_recent", "int4")),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
    });

// More sessions than lanes: each turn another one has to give its lane up and come back from host
// memory.
TEST(Sessions, ShareFewLanesWithoutNotice) {
  TinySetup setup = Tiny("h2o");
  std::vector<std::vector<Turn>> talks;
  std::vector<Conversation> expected;
  for (int i = 0; i < 5; ++i) {
    talks.push_back({{RandomIds(11 + 9 * i, kVocab, 10 + i), 5},
                     {RandomIds(25 - i, kVocab, 20 + i), 6},
                     {RandomIds(3 + i, kVocab, 30 + i), 4}});
    expected.push_back(FeedByHand(setup, Policy("h2o"), talks.back()));
  }
  for (const int ranks : {1, 2}) {
    setup.ranks = ranks;
    WhileServing(setup, {}, [&](Engine& engine) {
      std::vector<std::string> ids;
      for (size_t i = 0; i < talks.size(); ++i) ids.push_back(Create(engine, Policy("h2o")));
      for (size_t t = 0; t < 3; ++t) {
        std::vector<std::future<std::vector<int32_t>>> answers;
        for (size_t i = 0; i < ids.size(); ++i) {
          const Turn& turn = talks[i][t];
          answers.push_back(std::async(std::launch::async, [&, i, turn] {
            return TokensOf(engine, AskSession(engine, ids[i], turn.prompt, turn.new_tokens));
          }));
        }
        for (size_t i = 0; i < ids.size(); ++i) {
          EXPECT_EQ(answers[i].get(), expected[i].answers[t]) << "session " << i << " turn " << t;
        }
      }
      int on_lane = 0;
      for (const SessionInfo& info : engine.sessions()->List()) {
        on_lane += info.on_lane;
        EXPECT_EQ(info.on_lane, info.memory_bytes == 0);
      }
      EXPECT_EQ(on_lane, 2);
    });
  }
}

TEST(Sessions, ForksGoTheirOwnWays) {
  const Turn begin{RandomIds(50, kVocab, 1), 6};
  const Turn left{RandomIds(20, kVocab, 2), 8};
  const Turn right{RandomIds(33, kVocab, 3), 8};
  const Conversation expected_left = FeedByHand(Tiny("h2o"), Policy("h2o"), {begin, left});
  const Conversation expected_right = FeedByHand(Tiny("h2o"), Policy("h2o"), {begin, right});
  WhileServing(Tiny("h2o"), {}, [&](Engine& engine) {
    const std::string id = Create(engine, Policy("h2o"));
    TokensOf(engine, AskSession(engine, id, begin.prompt, begin.new_tokens));
    const auto fork = Fork(engine, id);
    ASSERT_TRUE(fork.ok()) << fork.status();
    EXPECT_NE(fork->id, id);
    EXPECT_EQ(fork->tokens, 56);
    EXPECT_EQ(fork->turns, 1u);
    const auto fork_answer = TokensOf(engine, AskSession(engine, fork->id, right.prompt, 8));
    EXPECT_EQ(TokensOf(engine, AskSession(engine, id, left.prompt, 8)), expected_left.answers[1]);
    EXPECT_EQ(fork_answer, expected_right.answers[1]);
    EXPECT_TRUE(engine.sessions()->Delete(id).ok());
    EXPECT_EQ(Fork(engine, id).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(engine.sessions()->List().size(), 1u);
  });
}

TEST(Sessions, SavedOnThreeRanksGoOnOnTwoAndOnOne) {
  const TempDir dir;
  const std::vector<Turn> turns = Turns();
  for (const char* name : {"dense", "h2o_vnorm"}) {
    const std::string storage = "int8";
    TinySetup setup = Tiny(name, storage);
    const Conversation expected = FeedByHand(setup, Policy(name), turns);
    std::string saved;
    setup.ranks = 3;
    WhileServing(setup, WithDir(dir), [&](Engine& engine) {
      const std::string id = Create(engine, Policy(name));
      for (size_t t = 0; t < 2; ++t) {
        TokensOf(engine, AskSession(engine, id, turns[t].prompt, turns[t].new_tokens));
      }
      const auto file = Save(engine, id);
      ASSERT_TRUE(file.ok()) << file.status();
      saved = file->name;
      EXPECT_GT(file->bytes, 1000);
    });
    for (const int ranks : {2, 1}) {
      setup.ranks = ranks;
      WhileServing(setup, WithDir(dir), [&](Engine& engine) {
        const auto session = engine.sessions()->Restore(saved);
        ASSERT_TRUE(session.ok()) << session.status();
        EXPECT_EQ(session->turns, 2u);
        EXPECT_EQ(TokensOf(engine, AskSession(engine, session->id, turns[2].prompt, 7)),
                  expected.answers[2])
            << name << " on " << ranks << " ranks";
      });
    }
  }
}

TEST(Sessions, ACancelledTurnStaysAsFarAsItCame) {
  WhileServing(Tiny("last_recent"), {}, [&](Engine& engine) {
    const std::string id = Create(engine, Policy("last_recent"));
    auto sink = std::make_shared<RecordingSink>();
    RequestId request_id = 0;
    std::promise<void> three;
    sink->on_tokens = [&] {
      if (sink->tokens.size() == 3) three.set_value();
    };
    const auto request = engine.Submit(AskSession(engine, id, RandomIds(20, kVocab, 4), 400), sink);
    ASSERT_TRUE(request.ok()) << request.status();
    request_id = *request;
    three.get_future().wait();
    // Nobody else may touch it meanwhile.
    EXPECT_EQ(engine.sessions()->Delete(id).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(Fork(engine, id).status().code(), absl::StatusCode::kFailedPrecondition);
    Request second = AskSession(engine, id, {1}, 2);
    const auto refused = Hear(engine, second)->status;
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("busy"));
    engine.Cancel(request_id);
    while (engine.sessions()->Get(id)->busy) absl::SleepFor(absl::Milliseconds(1));
    const auto info = engine.sessions()->Get(id);
    EXPECT_EQ(info->turns, 1u);
    // What was said is part of the conversation, and the next turn follows it.
    const std::vector<int32_t> said = sink->tokens;
    EXPECT_EQ(info->tokens, 20 + static_cast<int>(said.size()));
    const auto answer = TokensOf(engine, AskSession(engine, id, {7, 8}, 5));
    const Conversation expected =
        FeedByHand(Tiny("last_recent"), Policy("last_recent"),
                   {{RandomIds(20, kVocab, 4), static_cast<int>(said.size())}, {{7, 8}, 5}});
    EXPECT_EQ(said, expected.answers[0]);
    if (info->last_token == said.back()) {
      EXPECT_EQ(answer.size(), expected.answers[1].size());
    }
  });
}

TEST(Sessions, AStaleOrImpossibleTurnIsRefusedAndLeavesTheSession) {
  WhileServing(Tiny("dense"), {}, [&](Engine& engine) {
    const std::string id = Create(engine, Policy("dense"));
    Request stale = AskSession(engine, id, {1, 2, 3}, 2);
    TokensOf(engine, stale);
    EXPECT_THAT(std::string(Hear(engine, stale)->status.message()), HasSubstr("turn 1"));
    const auto too_long = Hear(engine, AskSession(engine, id, RandomIds(300, kVocab, 1), 2));
    EXPECT_EQ(too_long->status.code(), absl::StatusCode::kInvalidArgument);
    Request scored = AskSession(engine, id, {1}, 1);
    scored.score.enabled = true;
    EXPECT_EQ(Hear(engine, scored)->status.code(), absl::StatusCode::kInvalidArgument);
    Request other = AskSession(engine, id, {1}, 1);
    other.cache = Policy("dense");
    EXPECT_EQ(Hear(engine, other)->status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Hear(engine, AskSession(engine, id, {}, 3))->tokens.size(), 3u);  // goes on
    Request unknown = Ask({1}, 1);
    unknown.session = {.id = "nobody", .turn = 0};
    EXPECT_EQ(Hear(engine, unknown)->status.code(), absl::StatusCode::kNotFound);
  });
}

TEST(Sessions, TheLeastRecentlyUsedOneExpires) {
  EngineOptions options;
  options.sessions.max_sessions = 2;
  WhileServing(Tiny("h2o"), options, [&](Engine& engine) {
    const std::string a = Create(engine, Policy("h2o"));
    const std::string b = Create(engine, Policy("h2o"));
    TokensOf(engine, AskSession(engine, a, {1, 2}, 2));  // b is now the older one
    const std::string c = Create(engine, Policy("h2o"));
    EXPECT_TRUE(engine.sessions()->Get(a).ok());
    EXPECT_EQ(engine.sessions()->Get(b).status().code(), absl::StatusCode::kNotFound);
    EXPECT_TRUE(engine.sessions()->Get(c).ok());
    // The lane of an expired session is free again: both lanes serve.
    TokensOf(engine, AskSession(engine, c, {1, 2}, 2));
    const std::string d = Create(engine, Policy("h2o"));
    const std::string e = Create(engine, Policy("h2o"));
    EXPECT_EQ(TokensOf(engine, AskSession(engine, d, {5}, 3)).size(), 3u);
    EXPECT_EQ(TokensOf(engine, AskSession(engine, e, {6}, 3)).size(), 3u);
    EXPECT_EQ(TokensOf(engine, Ask({6}, 3)).size(), 3u);
  });
}

TEST(Sessions, MemoryIsBounded) {
  // One lane's state at a time.
  EngineOptions options;
  TinySetup setup = Tiny("h2o");
  setup.lanes = 1;
  int64_t lane = 0;
  WithPipeline(setup, [&](Coordinator& coordinator) {
    lane = static_cast<int64_t>(*LaneBytes(coordinator.model(), coordinator.spec()));
    coordinator.Shutdown();
  });
  options.sessions.max_bytes = lane;
  WhileServing(setup, options, [&](Engine& engine) {
    std::vector<std::string> ids;
    for (int i = 0; i < 4; ++i) {
      ids.push_back(Create(engine, Policy("h2o")));
      TokensOf(engine, AskSession(engine, ids.back(), RandomIds(60, kVocab, i), 2));
    }
    // The last one has the lane, the one before the memory.
    const auto left = engine.sessions()->List();
    ASSERT_EQ(left.size(), 2u);
    EXPECT_EQ(left[0].id, ids[2]);
    EXPECT_GT(left[0].memory_bytes, 0);
    EXPECT_LE(left[0].memory_bytes, lane);
    EXPECT_TRUE(left[1].on_lane);
    // They can change places.
    EXPECT_EQ(TokensOf(engine, AskSession(engine, ids[2], {1}, 2)).size(), 2u);
    EXPECT_EQ(TokensOf(engine, AskSession(engine, ids[3], {1}, 2)).size(), 2u);
  });
  options.sessions.max_bytes = lane - 1;
  WhileServing(setup, options, [&](Engine& engine) {
    const auto refused = engine.sessions()->Create({});
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--session-memory"));
  });
  options.sessions.max_sessions = 0;
  WhileServing(setup, options, [&](Engine& engine) {
    EXPECT_EQ(engine.sessions()->Create({}).status().code(), absl::StatusCode::kFailedPrecondition);
  });
}

TEST(Sessions, FilesOfOthersEndInAStatus) {
  const TempDir dir;
  TinySetup setup = Tiny("h2o");
  setup.enabled = {"last_recent", "h2o"};
  WhileServing(setup, WithDir(dir), [&](Engine& engine) {
    SessionStore& sessions = *engine.sessions();
    const std::string id = Create(engine, Policy("h2o"));
    TokensOf(engine, AskSession(engine, id, RandomIds(60, kVocab, 1), 3));
    const auto saved = Save(engine, id);
    ASSERT_TRUE(saved.ok()) << saved.status();
    const std::string good = ReadAll(FileOf(dir, saved->name));
    const auto state = *DecodeSession(good, "tiny");
    const auto restore = [&](const SessionState& changed, const std::string& model = "tiny") {
      WriteAll(FileOf(dir, saved->name), EncodeSession(changed, model));
      return sessions.Restore(saved->name);
    };
    EXPECT_EQ(restore(state, "other").status().code(), absl::StatusCode::kFailedPrecondition);
    SessionState bad = state;
    bad.cache.cache_length = {4096};
    EXPECT_EQ(restore(bad).status().code(), absl::StatusCode::kFailedPrecondition);
    bad = state;
    bad.cache.chunk_size = INT32_MAX;
    EXPECT_EQ(restore(bad).status().code(), absl::StatusCode::kFailedPrecondition);
    bad = state;
    bad.tokens = -5;
    EXPECT_FALSE(restore(bad).ok());
    bad = state;
    bad.tokens = INT32_MAX;
    EXPECT_EQ(restore(bad).status().code(), absl::StatusCode::kFailedPrecondition);
    bad = state;
    bad.pending = {kVocab};
    EXPECT_EQ(restore(bad).status().code(), absl::StatusCode::kFailedPrecondition);
    bad = state;
    bad.prefix = 7;
    EXPECT_EQ(restore(bad).status().code(), absl::StatusCode::kDataLoss);
    bad = state;
    bad.image = nullptr;
    EXPECT_EQ(restore(bad).status().code(), absl::StatusCode::kDataLoss);

    // Those whose layers lie are found out when their state reaches the caches.
    const auto first_turn = [&](const SessionState& changed) {
      const auto info = restore(changed);
      EXPECT_TRUE(info.ok()) << info.status();
      const auto status = Hear(engine, AskSession(engine, info->id, {1, 2}, 2))->status;
      EXPECT_TRUE(sessions.Delete(info->id).ok());
      return status;
    };
    EXPECT_TRUE(first_turn(state).ok());
    const auto with_layer = [&](const std::string& bytes) {
      SessionState changed = state;
      auto image = std::make_shared<LaneImage>(*state.image);
      image->layers[1] = bytes;
      changed.image = image;
      return changed;
    };
    EXPECT_EQ(first_turn(with_layer("")).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(first_turn(with_layer(state.image->layers[1].substr(0, 400))).code(),
              absl::StatusCode::kInvalidArgument);
    bad = state;  // rules of another policy: chunks would not fit
    bad.cache = Policy("last_recent");
    EXPECT_EQ(first_turn(bad).code(), absl::StatusCode::kDataLoss);
    bad = state;
    bad.cache.grace = 2;
    EXPECT_EQ(first_turn(bad).code(), absl::StatusCode::kDataLoss);
    bad = state;
    bad.tokens = state.tokens - 1;
    EXPECT_EQ(first_turn(bad).code(), absl::StatusCode::kDataLoss);

    // Names are no paths.
    for (const char* name : {"", "x", "../secret", "0123456789abcdef0123456789abcde/",
                             "0123456789ABCDEF0123456789ABCDEF"}) {
      EXPECT_EQ(sessions.Restore(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
      EXPECT_EQ(sessions.DeleteSaved(name).code(), absl::StatusCode::kInvalidArgument) << name;
    }
    EXPECT_EQ(sessions.Restore(std::string(32, '0')).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(sessions.ListSaved()->size(), 1u);
    EXPECT_TRUE(sessions.DeleteSaved(saved->name).ok());
    EXPECT_EQ(sessions.DeleteSaved(saved->name).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(TokensOf(engine, Ask({1, 2}, 3)).size(), 3u);  // alive and well
  });
}

// What is left to the prompt is decided once, when the session is made.
TEST(Sessions, AreCompleteFromTheBeginning) {
  TinySetup setup = Tiny("last_recent");
  setup.enabled = {"last_recent", "protected_last_recent"};
  WhileServing(setup, {}, [&](Engine& engine) {
    LanePolicy policy = Policy("last_recent");
    policy.chunk_size.reset();
    const auto info = engine.sessions()->Create({.cache = policy, .prefix = {}});
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_GT(info->cache.chunk_size.value_or(0), 0);
    policy = Policy("last_recent");
    policy.policy = "protected_last_recent";
    policy.protect_until = "x";
    const auto refused = engine.sessions()->Create({.cache = policy, .prefix = {1}});
    EXPECT_THAT(std::string(refused.status().message()),
                HasSubstr("protect_until: this model has no tokenizer"));
  });
}

TEST(Sessions, WithoutAFolderNothingIsSaved) {
  WhileServing(Tiny("h2o"), {}, [&](Engine& engine) {
    const std::string id = Create(engine, Policy("h2o"));
    EXPECT_EQ(Save(engine, id).status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(engine.sessions()->ListSaved().status().code(),
              absl::StatusCode::kFailedPrecondition);
  });
}

TEST(Sessions, AfterTheEndCallsAreUnavailable) {
  WithPipeline(Tiny("h2o"), [&](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, {});
    const std::string id = Create(engine, Policy("h2o"));
    engine.Stop();
    EXPECT_TRUE(engine.Run().ok());
    EXPECT_EQ(engine.sessions()->Get(id).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(Fork(engine, id).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(engine.sessions()->Create({}).status().code(), absl::StatusCode::kUnavailable);
  });
}

}  // namespace
}  // namespace keyline
