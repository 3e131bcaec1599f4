// GenerateStream: order, cancels, deadlines, lost connections, slow readers.
#include <arpa/inet.h>
#include <glog/logging.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "rpc/connection/listener.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using testing::FakeQueue;
using testing::ServedQueue;
using testing::TextRequest;

constexpr absl::Duration kPatience = absl::Seconds(20);

// What a stream added up to, with the rules that every stream keeps.
struct Told {
  int events = 0;
  int tokens = 0;
  std::string text;
  v1::PromptInfo prompt_info;
  v1::Finish finish;
};

Told ReadAll(EventStream& stream) {
  Told told;
  v1::GenerateEvent event;
  while (stream.Next(&event)) {
    ++told.events;
    EXPECT_FALSE(told.finish.has_usage()) << "an event after Finish";
    if (event.has_prompt_info()) {
      EXPECT_EQ(told.events, 1);
      told.prompt_info = event.prompt_info();
    } else if (event.has_delta()) {
      EXPECT_EQ(static_cast<int>(event.delta().first_index()), told.tokens);
      for (const uint32_t token : event.delta().token_ids()) {
        EXPECT_EQ(static_cast<int>(token), 'a' + told.tokens % 26);
        ++told.tokens;
      }
      told.text += event.delta().text();
    } else {
      told.finish = event.finish();
    }
  }
  return told;
}

TEST(GenerateStream, EventsComeInOrder) {
  ServedQueue served;
  v1::GenerateRequest request = TextRequest("hello", 200);
  request.mutable_sampling()->set_seed(77);
  request.mutable_response()->set_logprobs(true);
  request.mutable_response()->set_cache_report(true);
  const std::unique_ptr<EventStream> stream = served.client().GenerateStream(request);
  const Told told = ReadAll(*stream);
  EXPECT_EQ(stream->Finish(), absl::OkStatus());
  EXPECT_EQ(told.prompt_info.prompt_tokens(), 6);
  EXPECT_EQ(told.prompt_info.seed(), 77);
  EXPECT_EQ(told.tokens, 200);
  EXPECT_EQ(told.text.size(), 200);
  EXPECT_EQ(told.finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(told.finish.usage().prompt_tokens(), 6);
  EXPECT_EQ(told.finish.usage().new_tokens(), 200);
  EXPECT_EQ(told.finish.cache().layers_size(), 1);
  EXPECT_EQ(told.finish.cache().layers(0).evicted(), 3);
  EXPECT_TRUE(served.queue().WaitIdle(kPatience));
}

TEST(GenerateStream, TwoHundredAtOnce) {
  ServedQueue served({.lanes = 200, .max_waiting = 200, .step = absl::ZeroDuration()});
  std::vector<std::unique_ptr<EventStream>> streams;
  for (int i = 0; i < 200; ++i) {
    streams.push_back(served.client().GenerateStream(TextRequest("x", 30)));
  }
  for (const std::unique_ptr<EventStream>& stream : streams) {
    EXPECT_EQ(ReadAll(*stream).tokens, 30);
    EXPECT_EQ(stream->Finish(), absl::OkStatus());
  }
  EXPECT_EQ(served.queue().ends(), (std::map<std::string, int>{{"finish", 200}}));
}

TEST(GenerateStream, ACancelFreesItsLaneAtTheNextStep) {
  const absl::Duration step = absl::Milliseconds(2);
  ServedQueue served({.lanes = 16, .step = step});
  std::vector<std::unique_ptr<EventStream>> streams;
  v1::GenerateEvent event;
  for (int i = 0; i < 16; ++i) {
    streams.push_back(served.client().GenerateStream(TextRequest("x", 1 << 20)));
    ASSERT_TRUE(streams.back()->Next(&event));
  }
  const absl::Time begin = absl::Now();
  for (const std::unique_ptr<EventStream>& stream : streams) stream->Cancel();
  ASSERT_TRUE(served.queue().WaitIdle(kPatience));
  const absl::Duration all_free = absl::Now() - begin;
  EXPECT_EQ(served.queue().ends(), (std::map<std::string, int>{{"CANCELLED", 16}}));
  for (const std::unique_ptr<EventStream>& stream : streams) {
    EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kCancelled);
  }
  RecordProperty("all_free_us", static_cast<int>(absl::ToInt64Microseconds(all_free)));
  // Bounds for a loaded machine; on a quiet one it is a step and some 100 us.
  EXPECT_LT(served.queue().slowest_cancel(), absl::Seconds(1));
  EXPECT_LT(all_free, absl::Seconds(2));
}

TEST(GenerateStream, ADeadlineReachesTheEngineAndFreesTheLane) {
  ServedQueue served;
  const absl::Time deadline = absl::Now() + absl::Milliseconds(150);
  const std::unique_ptr<EventStream> stream =
      served.client().GenerateStream(TextRequest("x", 1 << 20), {.deadline = deadline});
  ReadAll(*stream);
  EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(served.queue().WaitIdle(kPatience));
  EXPECT_LT(absl::AbsDuration(served.queue().last_request().deadline - deadline), absl::Seconds(2));
}

TEST(GenerateStream, WithoutADeadlineThereIsNone) {
  ServedQueue served;
  ReadAll(*served.client().GenerateStream(TextRequest("x", 1)));
  EXPECT_EQ(served.queue().last_request().deadline, absl::InfiniteFuture());
}

// A wire to the server that can be cut.
class Wire {
 public:
  explicit Wire(int server_port) : listener_(*Listener::Bind("127.0.0.1:0")) {
    listener_->Start([this, server_port](int client) {
      const int server = socket(AF_INET, SOCK_STREAM, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(server_port);
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      CHECK_EQ(connect(server, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
      std::lock_guard lock(mutex_);
      ends_.insert(ends_.end(), {client, server});
      pumps_.emplace_back(Pump, client, server);
      pumps_.emplace_back(Pump, server, client);
    });
  }
  ~Wire() {
    Cut();
    for (std::thread& pump : pumps_) pump.join();
    for (const int end : ends_) close(end);
  }
  const std::string& address() const { return listener_->address(); }
  void Cut() {
    listener_->Stop();
    std::lock_guard lock(mutex_);
    for (const int end : ends_) shutdown(end, SHUT_RDWR);
  }

 private:
  static void Pump(int from, int to) {
    char bytes[4096];
    while (true) {
      pollfd readable{from, POLLIN, 0};
      poll(&readable, 1, -1);
      const ssize_t count = read(from, bytes, sizeof(bytes));
      if (count <= 0 || send(to, bytes, count, MSG_NOSIGNAL) != count) return;
    }
  }

  std::unique_ptr<Listener> listener_;
  std::mutex mutex_;
  std::vector<int> ends_;
  std::vector<std::thread> pumps_;
};

TEST(GenerateStream, ALostConnectionFreesItsLanes) {
  ServedQueue served;
  Wire wire(served.server().port());
  ClientOptions once;
  once.max_attempts = 1;
  const std::unique_ptr<Client> client = *Client::Connect(wire.address(), once);
  std::vector<std::unique_ptr<EventStream>> streams;
  v1::GenerateEvent event;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(client->GenerateStream(TextRequest("x", 1 << 20)));
    ASSERT_TRUE(streams.back()->Next(&event));
  }
  wire.Cut();
  EXPECT_TRUE(served.queue().WaitIdle(kPatience));
  EXPECT_EQ(served.queue().ends(), (std::map<std::string, int>{{"CANCELLED", 4}}));
  for (const std::unique_ptr<EventStream>& stream : streams) {
    while (stream->Next(&event)) {
    }
    EXPECT_EQ(stream->Finish().code(), absl::StatusCode::kUnavailable);
  }
}

TEST(GenerateStream, ACancelWhileQueuedIsNotLost) {
  ServedQueue served({.lanes = 1});
  v1::GenerateEvent event;
  const std::unique_ptr<EventStream> first =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  ASSERT_TRUE(first->Next(&event));
  const std::unique_ptr<EventStream> second =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  while (served.queue().load().waiting == 0) absl::SleepFor(absl::Milliseconds(1));
  second->Cancel();
  EXPECT_EQ(second->Finish().code(), absl::StatusCode::kCancelled);
  first->Cancel();
  EXPECT_TRUE(served.queue().WaitIdle(kPatience));
}

// Text that a client does not read fills HTTP/2's window, then the writer's pending tokens; then
// the stream is ended. Meanwhile others are served as if nothing were.
TEST(GenerateStream, ASlowReaderIsEndedAndHoldsUpNobody) {
  ServeOptions options;
  options.max_pending_tokens = 64;
  ServedQueue served({.lanes = 4, .text_bytes = 20000}, options);
  const std::unique_ptr<EventStream> slow =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  v1::GenerateEvent event;
  ASSERT_TRUE(slow->Next(&event));
  ASSERT_TRUE(served.queue().WaitIdle(kPatience)) << "the slow reader's request was not ended";
  EXPECT_EQ(served.queue().ends(), (std::map<std::string, int>{{"CANCELLED", 1}}));

  const std::unique_ptr<EventStream> other = served.client().GenerateStream(TextRequest("x", 100));
  EXPECT_EQ(ReadAll(*other).tokens, 100);
  EXPECT_EQ(other->Finish(), absl::OkStatus());

  int tokens = 0;
  while (slow->Next(&event)) {
    ASSERT_TRUE(event.has_delta());
    EXPECT_EQ(static_cast<int>(event.delta().first_index()), tokens);
    tokens += event.delta().token_ids_size();
  }
  const absl::Status status = slow->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      status.message(),
      "the stream was read too slowly: 65 tokens were waiting, at most 64 may; the tokens up to "
      "here are valid");
  EXPECT_FALSE(RetryDelay(status).has_value());
  EXPECT_LT(served.queue().slowest_step(), absl::Seconds(2));
}

// A reader that is behind gets fewer and larger events, and every token once.
TEST(GenerateStream, EventsAreGatheredForAReaderThatIsBehind) {
  ServeOptions options;
  options.max_pending_tokens = 1 << 20;
  ServedQueue served({.step = absl::ZeroDuration(), .text_bytes = 100}, options);
  const std::unique_ptr<EventStream> stream =
      served.client().GenerateStream(TextRequest("x", 10000));
  ASSERT_TRUE(served.queue().WaitIdle(kPatience));
  const Told told = ReadAll(*stream);
  EXPECT_EQ(stream->Finish(), absl::OkStatus());
  EXPECT_EQ(told.tokens, 10000);
  EXPECT_EQ(told.text.size(), 1000000);
  EXPECT_LT(told.events, 10000);
}

TEST(GenerateStream, AnEngineThatStopsEndsItsStreams) {
  auto queue = std::make_unique<FakeQueue>();
  testing::ByteTokenizer tokenizer;
  ServeOptions options;
  options.address = "127.0.0.1:0";
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(options, testing::TestFacts(), &tokenizer, *queue);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::unique_ptr<Client> client = *Client::Connect((*server)->address());
  const std::unique_ptr<EventStream> stream = client->GenerateStream(TextRequest("x", 1 << 20));
  v1::GenerateEvent event;
  ASSERT_TRUE(stream->Next(&event));
  queue->Stop();
  while (stream->Next(&event)) {
  }
  EXPECT_EQ(stream->Finish(), absl::UnavailableError("the engine has stopped"));
}

}  // namespace
}  // namespace keyline
