// The whole way of a token: 200 clients stream at once from a server whose pipeline has two ranks.

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "rpc/client/client.h"
#include "rpc/server/server.h"
#include "runtime/engine/engine.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using testing::RandomIds;
using testing::WithPipeline;

constexpr int kClients = 200;
constexpr int kDifferent = 10;  // prompts; clients of one prompt must hear the same

v1::GenerateRequest RequestOf(int client) {
  const int kind = client % kDifferent;
  v1::GenerateRequest request;
  for (int32_t id : RandomIds(3 + 7 * kind, 320, kind)) {
    request.mutable_prompt()->mutable_token_ids()->add_ids(id);
  }
  request.mutable_stopping()->set_max_new_tokens(8 + kind);
  if (kind % 2 == 1) {
    request.mutable_sampling()->set_temperature(1.0f);
    request.mutable_sampling()->set_seed(kind);
  }
  return request;
}

// The stream's tokens; fails the test where an index repeats or skips, or the stream does not end
// well.
std::vector<uint32_t> Stream(Client& client, int number) {
  std::vector<uint32_t> tokens;
  int finishes = 0;
  const absl::Status status =
      client.GenerateStream(RequestOf(number), [&](const v1::GenerateEvent& event) {
        if (event.has_delta()) {
          EXPECT_EQ(finishes, 0);
          EXPECT_EQ(event.delta().first_index(), tokens.size()) << "client " << number;
          tokens.insert(tokens.end(), event.delta().token_ids().begin(),
                        event.delta().token_ids().end());
        }
        finishes += event.has_finish() ? 1 : 0;
        return true;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(static_cast<int>(tokens.size()), 8 + number % kDifferent);
  return tokens;
}

TEST(ServedPipeline, TwoHundredStreamsAreWholeAndInOrder) {
  WithPipeline({.ranks = 2, .lanes = 16, .max_pass_tokens = 128}, [](Coordinator& coordinator) {
    EngineOptions options;
    options.max_queued_requests = kClients;
    Engine engine(coordinator, nullptr, options);
    ServerFacts facts;
    facts.model = coordinator.model().config();
    facts.cache = coordinator.spec().cache;
    ServeOptions serve;
    serve.address = "127.0.0.1:0";
    auto server = Server::Start(serve, facts, nullptr, engine);
    ASSERT_TRUE(server.ok()) << server.status();

    std::vector<std::vector<uint32_t>> heard(kClients);
    std::thread clients([&] {
      // Several connections, as many clients have.
      std::vector<std::unique_ptr<Client>> connections;
      for (int i = 0; i < 8; ++i) connections.push_back(*Client::Connect((*server)->address()));
      std::vector<std::thread> threads;
      for (int i = 0; i < kClients; ++i) {
        threads.emplace_back([&, i] { heard[i] = Stream(*connections[i % 8], i); });
      }
      for (std::thread& thread : threads) thread.join();
      const auto load = connections[0]->GetLoad();
      EXPECT_TRUE(load.ok()) << load.status();
      EXPECT_EQ(load->running(), 0u);
      EXPECT_EQ(load->waiting(), 0u);
      EXPECT_EQ(load->requests_finished(), static_cast<uint64_t>(kClients));
      engine.Drain();
    });
    const absl::Status ran = engine.Run();
    EXPECT_TRUE(ran.ok()) << ran;
    clients.join();
    EXPECT_TRUE((*server)->Shutdown(absl::Seconds(5)));
    for (int i = kDifferent; i < kClients; ++i) {
      EXPECT_EQ(heard[i], heard[i % kDifferent]) << "client " << i;
    }
  });
}

}  // namespace
}  // namespace keyline
