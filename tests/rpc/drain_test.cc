// A server's end: health, refusals, running streams, the limit.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::ServedQueue;
using testing::TextRequest;

// A watch of one service's health.
class Watch {
 public:
  Watch(const std::string& address, const std::string& service)
      : stub_(grpc::health::v1::Health::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    HealthCheckRequest request;
    request.set_service(service);
    reader_ = stub_->Watch(&context_, request);
  }
  ~Watch() {
    context_.TryCancel();
    reader_->Finish();
  }
  HealthCheckResponse::ServingStatus Next() {
    HealthCheckResponse response;
    return reader_->Read(&response) ? response.status() : HealthCheckResponse::UNKNOWN;
  }

 private:
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader_;
};

TEST(Drain, HealthTurnsAtOnceNewCallsAreRefusedRunningOnesFinish) {
  ServedQueue served({.step = absl::Milliseconds(2)});
  Watch ready(served.address(), "keyline.v1.Inference");
  Watch live(served.address(), "");
  EXPECT_EQ(ready.Next(), HealthCheckResponse::SERVING);
  EXPECT_EQ(live.Next(), HealthCheckResponse::SERVING);
  const std::unique_ptr<EventStream> running =
      served.client().GenerateStream(TextRequest("x", 200));
  v1::GenerateEvent event;
  ASSERT_TRUE(running->Next(&event));

  served.server().BeginDrain();
  EXPECT_EQ(ready.Next(), HealthCheckResponse::NOT_SERVING);
  const absl::Status refused = served.client().Generate(TextRequest("x", 1)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(refused.message(), "the server is draining; send the request to another one");
  EXPECT_TRUE(RetryDelay(refused).has_value());
  EXPECT_TRUE(served.client().GetServerInfo()->draining());
  EXPECT_EQ(served.NewClient()->WaitUntilReady(absl::Now() + absl::Milliseconds(200)),
            absl::DeadlineExceededError("the server is not ready: the server takes no requests"));

  std::thread reader([&] {
    int tokens = 0;
    while (running->Next(&event)) tokens += event.delta().token_ids_size();
    EXPECT_EQ(tokens, 200);
    EXPECT_EQ(running->Finish(), absl::OkStatus());
  });
  const absl::Time begin = absl::Now();
  EXPECT_TRUE(served.server().Shutdown(absl::Seconds(30)));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(15)) << "waited for more than its streams";
  reader.join();
}

TEST(Drain, WhatExceedsTheLimitIsCancelled) {
  ServedQueue served;
  const std::unique_ptr<EventStream> running =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  v1::GenerateEvent event;
  ASSERT_TRUE(running->Next(&event));
  std::thread reader([&] {
    while (running->Next(&event)) {
    }
    EXPECT_FALSE(running->Finish().ok());
  });
  const absl::Time begin = absl::Now();
  EXPECT_FALSE(served.server().Shutdown(absl::Milliseconds(100)));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
  reader.join();
  EXPECT_TRUE(served.queue().WaitIdle(absl::Seconds(10)));
}

// Its last event stays in HTTP/2's window until the limit.
TEST(Drain, AnUnreadStreamDoesNotHoldItUpForever) {
  ServedQueue served({.text_bytes = 200000});
  const std::unique_ptr<EventStream> unread =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  v1::GenerateEvent event;
  ASSERT_TRUE(unread->Next(&event));
  ASSERT_TRUE(served.queue().WaitIdle(absl::Seconds(20)));
  const absl::Time begin = absl::Now();
  EXPECT_FALSE(served.server().Shutdown(absl::Milliseconds(100)));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
}

TEST(Drain, ByControl) {
  std::atomic<int> asked = 0;
  ServeOptions options;
  options.on_drain = [&] { ++asked; };
  ServedQueue served({}, options);
  ASSERT_TRUE(served.client().Drain().ok());
  ASSERT_TRUE(served.client().Drain().ok());
  EXPECT_EQ(asked, 1);
  EXPECT_FALSE(served.queue().load().draining) << "that is on_drain's business";
  EXPECT_EQ(served.client().Generate(TextRequest("x", 1)).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(Drain, ByControlReachesTheQueueByItself) {
  ServedQueue served;
  ASSERT_TRUE(served.client().Drain().ok());
  EXPECT_TRUE(served.queue().load().draining);
}

}  // namespace
}  // namespace keyline
