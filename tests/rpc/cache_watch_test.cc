// WatchCacheEvents and GetCacheStats over the wire.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "keyline/v1/control.grpc.pb.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;
using testing::FakeQueue;
using testing::ServedQueue;
using testing::TextRequest;

constexpr absl::Duration kPatience = absl::Seconds(60);

v1::GenerateRequest Labelled(const std::string& label, int tokens) {
  v1::GenerateRequest request = TextRequest("x", tokens);
  request.set_request_id(label);
  return request;
}

// A watch whose reader reads when it likes.
class Watch {
 public:
  Watch(const std::string& address, const v1::WatchCacheEventsRequest& request)
      : stub_(v1::Control::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    reader_ = stub_->WatchCacheEvents(&context_, request);
    reader_->WaitForInitialMetadata();
  }
  bool Next(v1::CacheEvent* event) { return reader_->Read(event); }
  grpc::Status Cancel() {
    context_.TryCancel();
    return Finish();
  }
  grpc::Status Finish() {
    v1::CacheEvent rest;
    while (Next(&rest)) {
    }
    return reader_->Finish();
  }

 private:
  std::unique_ptr<v1::Control::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::CacheEvent>> reader_;
};

TEST(CacheStats, ArriveLayerByLayer) {
  ServedQueue served;
  const auto stats = served.client().GetCacheStats();
  ASSERT_TRUE(stats.ok()) << stats.status();
  ASSERT_EQ(stats->layers_size(), 2);
  EXPECT_EQ(stats->layers(1).layer(), 1);
  EXPECT_EQ(stats->layers(1).rank(), 1);
  EXPECT_EQ(stats->layers(1).capacity(), 32);
  EXPECT_EQ(stats->layers(1).slots_used(), 2);
  EXPECT_EQ(stats->layers(1).evicted(), 8);
  EXPECT_EQ(stats->layers(1).bytes(), 50);
}

TEST(CacheWatch, HearsOfTheRequestAndLayersAskedFor) {
  ServedQueue served;
  v1::WatchCacheEventsRequest request;
  request.set_request_id("mine");
  request.add_layers(1);
  std::vector<v1::CacheEvent> events;
  std::thread others;
  const absl::Status status = served.client().WatchCacheEvents(
      request,
      [&](const v1::CacheEvent& event) {
        events.push_back(event);
        return events.size() < 70;
      },
      [&] {
        others = std::thread([&] {
          EXPECT_TRUE(served.client().Generate(Labelled("other", 20)).ok());
          EXPECT_TRUE(served.client().Generate(Labelled("mine", 70)).ok());
        });
      },
      {.deadline = absl::Now() + kPatience});
  others.join();
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_EQ(events.size(), 70u);
  for (int i = 0; i < 70; ++i) {
    EXPECT_EQ(events[i].request_id(), "mine");
    EXPECT_EQ(events[i].lost(), 0);
    EXPECT_EQ(events[i].first_position(), i);
    EXPECT_EQ(events[i].tokens(), 1);
    ASSERT_EQ(events[i].layers_size(), 1);
    EXPECT_EQ(events[i].layers(0).layer(), 1);
    ASSERT_EQ(events[i].layers(0).heads_size(), 2);
    const v1::HeadCacheEvent& head = events[i].layers(0).heads(1);
    EXPECT_THAT(head.slots(), ElementsAre(i));
    EXPECT_THAT(head.moved_from(), ElementsAre(5));
    EXPECT_THAT(head.moved_to(), ElementsAre(6));
    EXPECT_EQ(head.evicted_size(), i < 64 ? 0 : 1);
  }
}

TEST(CacheWatch, WhoReadsSlowlyLosesEventsAndIsToldHowMany) {
  constexpr int kRequests = 16;
  constexpr int kTokens = 8000;
  ServedQueue served({.lanes = kRequests, .step = absl::ZeroDuration()});
  Watch watch(served.address(), {});
  std::vector<std::thread> clients;
  for (int i = 0; i < kRequests; ++i) {
    clients.emplace_back([&, i] {
      EXPECT_TRUE(served.client().Generate(Labelled(std::to_string(i), kTokens)).ok());
    });
  }
  // All answers come although nobody has read an event.
  for (std::thread& client : clients) client.join();
  uint64_t heard = 0;
  uint64_t lost = 0;
  std::map<std::string, int> next;  // position of each request: order is kept, nothing is repeated
  v1::CacheEvent event;
  while (heard + lost < uint64_t{kRequests} * kTokens && watch.Next(&event)) {
    lost += event.lost();
    if (event.layers_size() == 0) continue;
    ++heard;
    int& position = next[event.request_id()];
    EXPECT_GE(static_cast<int>(event.first_position()), position);
    position = static_cast<int>(event.first_position()) + 1;
  }
  EXPECT_EQ(heard + lost, uint64_t{kRequests} * kTokens);
  EXPECT_GT(lost, 0u);
  EXPECT_GE(heard, 1024u);  // what may wait
  EXPECT_EQ(watch.Cancel().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(CacheWatch, LayersThatAreNotThereAreRefused) {
  ServedQueue served;
  v1::WatchCacheEventsRequest request;
  request.add_layers(0);
  request.add_layers(2);
  const absl::Status status =
      served.client().WatchCacheEvents(request, [](const v1::CacheEvent&) { return true; });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "layers[1]: got 2, must be below the model's number of layers, 2");
}

TEST(CacheWatch, ThereAreSixteenPlaces) {
  ServedQueue served;
  std::vector<std::unique_ptr<Watch>> watches;
  for (int i = 0; i < 16; ++i) {
    watches.push_back(std::make_unique<Watch>(served.address(), v1::WatchCacheEventsRequest()));
  }
  const auto refused = [&] {
    Watch one_more(served.address(), {});
    return one_more.Cancel().error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  };
  Watch one_more(served.address(), {});
  EXPECT_EQ(one_more.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(watches.back()->Cancel().error_code(), grpc::StatusCode::CANCELLED);
  watches.pop_back();
  // The place is free once the server has heard of it.
  const absl::Time deadline = absl::Now() + kPatience;
  while (refused() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_LT(absl::Now(), deadline);
}

TEST(CacheWatch, DoesNotHoldUpAServersEnd) {
  ServedQueue served;
  Watch watch(served.address(), {});
  EXPECT_TRUE(served.client().Generate(Labelled("a", 5)).ok());
  EXPECT_TRUE(served.server().Shutdown(absl::Seconds(20)));
  EXPECT_FALSE(watch.Finish().ok());
}

}  // namespace
}  // namespace keyline
