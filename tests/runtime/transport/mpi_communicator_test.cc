// The laws of every transport between processes: `mpirun -np 3 mpi_communicator_test`. Every rank
// runs the same tests in the same order.
#include <gtest/gtest.h>

#include <iostream>

#include "tests/runtime/transport/communicator_laws.h"

namespace keyline {
namespace {

Communicator* world = nullptr;  // of this process; lives as long as main

class MpiCommunicatorLaws : public ::testing::TestWithParam<CommunicatorLaw> {};

TEST_P(MpiCommunicatorLaws, Hold) { GetParam().hold(*world); }

INSTANTIATE_TEST_SUITE_P(Processes, MpiCommunicatorLaws, ::testing::ValuesIn(CommunicatorLaws()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(MpiCommunicatorTest, KnowsThatItWasStartedByMpi) {
  EXPECT_TRUE(StartedByMpi());
  EXPECT_GT(world->size(), 1);
}

TEST(MpiCommunicatorTest, TheLastMessageIsDeliveredBeforeTheSenderEnds) {
  // Nobody waits for this one: rank 0's destructor must, until rank 1 has it.
  const Bytes last_words(3 << 20, std::byte{7});
  if (world->rank() == 0) world->SendBytes(1, last_words);
  if (world->rank() == 1) {
    const absl::StatusOr<Bytes> got = world->RecvBytes(0, absl::Seconds(20), "the last words");
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(*got == last_words);
  }
}

}  // namespace
}  // namespace keyline

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  auto communicator = keyline::MakeMpiCommunicator();
  if (!communicator.ok()) {
    std::cerr << communicator.status() << "\n";
    return 1;
  }
  keyline::world = communicator->get();
  return RUN_ALL_TESTS();
}
