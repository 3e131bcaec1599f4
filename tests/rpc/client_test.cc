// The SDK's own promises: attempts, waiting for readiness, giving up early.
#include "rpc/client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using testing::FakeQueue;
using testing::ServedQueue;
using testing::TextRequest;

TEST(Client, ARefusedCallIsSentAgainAfterTheServersDelay) {
  ServeOptions options;
  options.retry_delay = absl::Milliseconds(20);
  ServedQueue served({.lanes = 1, .max_waiting = 1, .step = absl::Milliseconds(1)}, options);
  ClientOptions patient;
  patient.max_attempts = 500;
  const std::unique_ptr<Client> client = served.NewClient(patient);
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      EXPECT_EQ(client->Generate(TextRequest("x", 20)).status(), absl::OkStatus());
      int tokens = 0;
      EXPECT_EQ(client->GenerateStream(TextRequest("x", 20),
                                       [&](const v1::GenerateEvent& event) {
                                         tokens += event.delta().token_ids_size();
                                         return true;
                                       }),
                absl::OkStatus());
      EXPECT_EQ(tokens, 20);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_GT(served.queue().load().requests_refused, 0);
  EXPECT_EQ(served.queue().ends(), (std::map<std::string, int>{{"finish", 16}}));
}

TEST(Client, AttemptsEnd) {
  ServeOptions options;
  options.retry_delay = absl::Milliseconds(5);
  ServedQueue served({.max_waiting = 0}, options);
  ClientOptions thrice;
  thrice.max_attempts = 3;
  const std::unique_ptr<Client> client = served.NewClient(thrice);
  EXPECT_EQ(client->Generate(TextRequest("x", 1)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(served.queue().load().requests_refused, 3);
  const std::unique_ptr<EventStream> stream = client->GenerateStream(TextRequest("x", 1));
  v1::GenerateEvent event;
  EXPECT_FALSE(stream->Next(&event));
  EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(served.queue().load().requests_refused, 6);
}

TEST(Client, WrongRequestsAreSentOnce) {
  ServedQueue served;
  const std::unique_ptr<Client> client = served.NewClient();
  const absl::Time begin = absl::Now();
  EXPECT_EQ(client->Generate(TextRequest("x", 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
}

TEST(Client, WaitUntilReadyOutlivesAServerThatIsNotThereYet) {
  std::string address;
  {
    ServedQueue served;
    address = served.address();
  }
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(address);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->WaitUntilReady(absl::Now() + absl::Milliseconds(100)).code(),
            absl::StatusCode::kDeadlineExceeded);
  FakeQueue queue;
  std::unique_ptr<Server> server;
  std::thread starter([&] {
    absl::SleepFor(absl::Milliseconds(200));
    ServeOptions options;
    options.address = address;
    server = *Server::Start(options, testing::TestFacts(), nullptr, queue);
  });
  EXPECT_EQ((*client)->WaitUntilReady(absl::Now() + absl::Seconds(20)), absl::OkStatus());
  starter.join();
  EXPECT_EQ((*client)->GetModelInfo()->has_tokenizer(), false);
}

TEST(Client, ACallbackMayGiveUp) {
  ServedQueue served;
  int events = 0;
  EXPECT_EQ(served.client().GenerateStream(TextRequest("x", 1 << 20),
                                           [&](const v1::GenerateEvent&) { return ++events < 3; }),
            absl::OkStatus());
  EXPECT_EQ(events, 3);
  EXPECT_TRUE(served.queue().WaitIdle(absl::Seconds(20)));
}

TEST(Client, AStreamMayBeLeftOrCancelledFromElsewhere) {
  ServedQueue served;
  { const auto left = served.client().GenerateStream(TextRequest("x", 1 << 20)); }
  EXPECT_TRUE(served.queue().WaitIdle(absl::Seconds(20)));
  const std::unique_ptr<EventStream> stream =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(30));
    stream->Cancel();
  });
  v1::GenerateEvent event;
  while (stream->Next(&event)) {
  }
  EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kCancelled);
  canceller.join();
}

TEST(Client, OptionsThatContradictEachOtherAreRefused) {
  ClientOptions token_without_tls;
  token_without_tls.token = "0123456789abcdef";
  EXPECT_EQ(Client::Connect("localhost:1", token_without_tls).status().code(),
            absl::StatusCode::kInvalidArgument);
  ClientOptions no_such_file;
  no_such_file.server_ca_file = "/no/such/file";
  EXPECT_EQ(Client::Connect("localhost:1", no_such_file).status(),
            absl::NotFoundError("/no/such/file: cannot be read"));
  ClientOptions no_attempt;
  no_attempt.max_attempts = 0;
  EXPECT_EQ(Client::Connect("localhost:1", no_attempt).status(),
            absl::InvalidArgumentError("max_attempts: got 0, must be at least 1"));
}

}  // namespace
}  // namespace keyline
