// Ranks as threads: the laws of every transport for 1, 2 and 3 ranks, and what happens to those
// that stay when a rank ends.
#include <gtest/gtest.h>

#include <thread>
#include <tuple>

#include "absl/time/clock.h"
#include "tests/runtime/transport/communicator_laws.h"
#include "tests/runtime/transport/memory_device.h"

namespace keyline {
namespace {

class LocalCommunicatorLaws : public ::testing::TestWithParam<std::tuple<CommunicatorLaw, int>> {};

TEST_P(LocalCommunicatorLaws, Hold) {
  const auto& [law, ranks] = GetParam();
  auto comms = MakeLocalCommunicators(ranks);
  ASSERT_EQ(static_cast<int>(comms.size()), ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    EXPECT_EQ(comms[r]->rank(), r);
    EXPECT_EQ(comms[r]->size(), ranks);
    threads.emplace_back([&law = law, comm = comms[r].get()] { law.hold(*comm); });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Threads, LocalCommunicatorLaws,
                         ::testing::Combine(::testing::ValuesIn(CommunicatorLaws()),
                                            ::testing::Values(1, 2, 3)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "With" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(LocalCommunicatorTest, AnEndedRankIsNamedAtOnce) {
  auto comms = MakeLocalCommunicators(2);
  absl::StatusOr<Bytes> got;
  const absl::Time start = absl::Now();
  std::thread waiter(
      [&] { got = comms[0]->RecvBytes(1, absl::InfiniteDuration(), "the result of step 3"); });
  absl::SleepFor(absl::Milliseconds(20));  // the other sleeps by now
  comms[1].reset();
  waiter.join();
  EXPECT_EQ(got.status(), absl::UnavailableError(
                              "rank 0: rank 1 has ended without sending the result of step 3"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(comms[0]->HasBytes(1)) << "the news is there at once";

  MemoryDevice device(/*memory_is_host=*/true);
  auto stream = device.NewStream();
  const Tensor tensor = Tensor::Allocate(device, DType::kF32, {1, 8}).value();
  EXPECT_EQ(comms[0]->Recv(1, tensor, *stream, absl::InfiniteDuration()).code(),
            absl::StatusCode::kUnavailable);
  comms[0]->SendBytes(1, {});  // to nobody: still never waits
}

TEST(LocalCommunicatorTest, WhatARankSentBeforeItEndedStaysReadable) {
  auto comms = MakeLocalCommunicators(2);
  const Bytes last_words(5, std::byte{42});
  comms[1]->SendBytes(0, last_words);
  comms[1].reset();
  const absl::StatusOr<Bytes> got = comms[0]->RecvBytes(1, absl::Seconds(5), "anything");
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, last_words);
  EXPECT_EQ(comms[0]->RecvBytes(1, absl::Seconds(5), "more").status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace keyline
