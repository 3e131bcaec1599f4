// Sessions under everything at once: turns, cancels, deadlines, forks, deletes and prefixes from
// many threads, with few lanes and little memory. Whatever a session has said is what the model
// says to its whole conversation: a dense cache's answer does not depend on how it was fed.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/engine/session_laws.h"

namespace keyline {
namespace {

using namespace testing;  // NOLINT: the fixtures

struct Talk {
  std::string id;
  std::vector<int32_t> tokens;  // of the whole conversation
};

class Storm {
 public:
  Storm(Engine& engine, uint32_t seed) : engine_(engine), random_(seed) {}

  void Run(int rounds) {
    for (int i = 0; i < rounds; ++i) Act();
  }
  int answered() const { return answered_; }

 private:
  int Draw(int below) { return static_cast<int>(random_() % below); }

  void Act() {
    if (talks_.empty() || Draw(8) == 0) {
      std::vector<int32_t> prefix = RandomIds(20, kVocab, Draw(3));  // some are shared
      const auto made = engine_.sessions()->Create({.cache = {}, .prefix = prefix});
      EXPECT_TRUE(made.ok() || absl::IsResourceExhausted(made.status())) << made.status();
      if (made.ok()) talks_.push_back({made->id, std::move(prefix)});
      return;
    }
    const int which = Draw(static_cast<int>(talks_.size()));
    switch (Draw(6)) {
      case 0:
        Fork(which);
        break;
      case 1:
        Abort(which);
        break;
      case 2:
        if (Draw(3) == 0) Forget(which, engine_.sessions()->Delete(talks_[which].id));
        break;
      default:
        Continue(which);
    }
  }

  // The session is this thread's alone, so if it is gone it has expired.
  void Forget(int which, const absl::Status& status) {
    EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << status;
    talks_.erase(talks_.begin() + which);
  }

  void Continue(int which) {
    Talk& talk = talks_[which];
    const auto info = engine_.sessions()->Get(talk.id);
    if (!info.ok()) return Forget(which, info.status());
    Request request = Ask(RandomIds(1 + Draw(12), kVocab, Draw(1000)), 1 + Draw(4));
    if (talk.tokens.size() + request.prompt.size() > 200) {
      return Forget(which, engine_.sessions()->Delete(talk.id));
    }
    request.session = {.id = talk.id, .turn = info->turns};
    const auto sink = Hear(engine_, request);
    if (!sink->status.ok()) return Forget(which, sink->status);
    talk.tokens.insert(talk.tokens.end(), request.prompt.begin(), request.prompt.end());
    const auto expected =
        TokensOf(engine_, Ask(talk.tokens, static_cast<int>(sink->tokens.size())));
    EXPECT_EQ(sink->tokens, expected);
    talk.tokens.insert(talk.tokens.end(), sink->tokens.begin(), sink->tokens.end());
    ++answered_;
  }

  void Fork(int which) {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<absl::StatusOr<SessionInfo>> fork;
    engine_.sessions()->Fork(talks_[which].id, [&](absl::StatusOr<SessionInfo> result) {
      std::lock_guard lock(mutex);
      fork = std::move(result);
      changed.notify_all();
    });
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return fork.has_value(); });
    if (fork->ok()) talks_.push_back({(*fork)->id, talks_[which].tokens});
    if (!fork->ok() && !absl::IsResourceExhausted(fork->status())) Forget(which, fork->status());
  }

  // A turn that ends early, wherever it is then. How far it came cannot be known here.
  void Abort(int which) {
    const std::string id = talks_[which].id;
    const auto info = engine_.sessions()->Get(id);
    if (!info.ok()) return Forget(which, info.status());
    Request request = Ask(RandomIds(1 + Draw(30), kVocab, Draw(1000)), 8);
    request.session = {.id = id, .turn = info->turns};
    request.deadline = absl::Now() + absl::Microseconds(Draw(3000));
    const auto sink = Hear(engine_, request);
    EXPECT_TRUE(sink->status.ok() || absl::IsDeadlineExceeded(sink->status) ||
                absl::IsNotFound(sink->status) || absl::IsInvalidArgument(sink->status))
        << sink->status;
    const auto go_on = Hear(engine_, AskUnlessGone(id));
    EXPECT_TRUE(go_on->status.ok() || absl::IsNotFound(go_on->status) ||
                absl::IsInvalidArgument(go_on->status))
        << go_on->status;
    talks_.erase(talks_.begin() + which);
    const absl::Status removed = engine_.sessions()->Delete(id);
    EXPECT_TRUE(removed.ok() || absl::IsNotFound(removed)) << removed;
  }

  Request AskUnlessGone(const std::string& id) {
    const auto info = engine_.sessions()->Get(id);
    Request request = Ask({5}, 2);
    request.session = {.id = id, .turn = info.ok() ? info->turns : 0};
    return request;
  }

  Engine& engine_;
  std::mt19937 random_;
  std::vector<Talk> talks_;
  int answered_ = 0;
};

TEST(SessionStorm, EveryAnswerIsTheModels) {
  for (const int ranks : {1, 2}) {
    EngineOptions options;
    options.sessions.max_sessions = 9;
    options.sessions.max_bytes = 700 << 10;  // some five states of 100 tokens
    options.max_prefix_bytes = 100 << 10;
    WhileServing({.ranks = ranks, .lanes = 2}, options, [&](Engine& engine) {
      std::atomic<int> answered = 0;
      std::vector<std::thread> threads;
      for (uint32_t t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
          Storm storm(engine, 100 * ranks + t);
          storm.Run(120);
          answered += storm.answered();
        });
      }
      for (std::thread& thread : threads) thread.join();
      EXPECT_GT(answered, 100);
      EXPECT_LE(engine.sessions()->List().size(), 9u);
      for (const SessionInfo& info : engine.sessions()->List()) {
        EXPECT_FALSE(info.busy);
        EXPECT_TRUE(engine.sessions()->Delete(info.id).ok());
      }
      // All lanes are free again.
      EXPECT_EQ(TokensOf(engine, Ask({1, 2}, 3)).size(), 3u);
      EXPECT_EQ(engine.load().running, 0);
    });
  }
}

}  // namespace
}  // namespace keyline
