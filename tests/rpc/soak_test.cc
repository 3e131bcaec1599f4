// Many calls that end in every way there is: afterwards no lane is held, every request has ended
// once, and every stream that finished has said what it would have said alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using testing::ServedQueue;
using testing::TextRequest;

// KEYLINE_SOAK_CALLS raises it: 10,000 takes minutes.
int Calls() {
  const char* calls = std::getenv("KEYLINE_SOAK_CALLS");
  return calls == nullptr ? 400 : std::atoi(calls);
}

struct Tally {
  std::atomic<int> finished = 0;
  std::atomic<int> refused = 0;
  std::atomic<int> given_up = 0;
};

// One call that is cancelled, runs into a deadline, loses its connection, or finishes.
void OneCall(ServedQueue& served, std::unique_ptr<Client>& client, std::mt19937& random,
             Tally& tally) {
  const int way = std::uniform_int_distribution(0, 4)(random);
  const int tokens = std::uniform_int_distribution(1, 20)(random);
  const int stop_after = std::uniform_int_distribution(0, 10)(random);
  CallOptions call;
  if (way == 1) call.deadline = absl::Now() + absl::Milliseconds(random() % 12);
  std::unique_ptr<EventStream> stream = client->GenerateStream(TextRequest("x", tokens), call);
  v1::GenerateEvent event;
  int told = 0;
  for (int events = 0; stream->Next(&event); ++events) {
    for (const uint32_t token : event.delta().token_ids()) {
      ASSERT_EQ(static_cast<int>(token), 'a' + told % 26);
      ++told;
    }
    if (way == 2 && events == stop_after) stream->Cancel();
    if (way == 3 && events == stop_after) {
      stream.reset();
      client = served.NewClient();
      ++tally.given_up;
      return;
    }
  }
  const absl::Status status = stream->Finish();
  if (status.ok()) {
    ASSERT_EQ(told, tokens);
    ++tally.finished;
  } else if (absl::IsResourceExhausted(status)) {
    ++tally.refused;
  } else {
    ASSERT_TRUE((way == 1 && absl::IsDeadlineExceeded(status)) ||
                (way == 2 && absl::IsCancelled(status)))
        << "way " << way << ": " << status;
    ++tally.given_up;
  }
}

TEST(Soak, NothingIsLostOrHeld) {
  ServedQueue served({.lanes = 8, .max_waiting = 8, .step = absl::Microseconds(300)});
  constexpr int kThreads = 8;
  Tally tally;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t + 1);
      ClientOptions once;
      once.max_attempts = 1;
      std::unique_ptr<Client> client = served.NewClient(once);
      for (int i = 0; i < Calls() / kThreads; ++i) OneCall(served, client, random, tally);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(served.queue().WaitIdle(absl::Seconds(20)));
  EXPECT_GT(tally.finished, 0);
  EXPECT_GT(tally.given_up, 0);

  uint64_t ends = 0;
  for (const auto& [kind, count] : served.queue().ends()) ends += count;
  EXPECT_EQ(ends, served.queue().load().requests_accepted);
  EXPECT_TRUE(served.server().Shutdown(absl::Seconds(10))) << "a call was still held";
}

}  // namespace
}  // namespace keyline
