// Every combination of threads and processes with one GPU, several, and none.
#include "launch/tensor_path.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace keyline {
namespace {

using ::testing::HasSubstr;

const std::vector<RankPlace> kCpus = {{"a", "cpu"}, {"a", "cpu"}};
const std::vector<RankPlace> kShared = {{"a", "cuda:0"}, {"a", "cuda:0"}};
const std::vector<RankPlace> kOwn = {{"a", "cuda:0"}, {"a", "cuda:1"}};
const std::vector<RankPlace> kDealt = {{"a", "cuda:0"}, {"a", "cuda:1"}, {"a", "cuda:0"}};
const std::vector<RankPlace> kTwoHosts = {{"a", "cuda:0"}, {"b", "cuda:0"}};
const std::vector<RankPlace> kMixed = {{"a", "cuda:0"}, {"a", "cpu"}};

TEST(TensorPathTest, AutoTakesNcclWhereEachRankIsAProcessWithAGpuToItself) {
  EXPECT_TRUE(ChooseTensorPath("auto", false, kOwn, 0)->nccl);
  EXPECT_EQ(ChooseTensorPath("auto", false, kOwn, 1)->nccl_host, "");
  for (const bool threads : {true, false}) {
    for (const auto& ranks : {kCpus, kShared, kDealt}) {
      EXPECT_FALSE(ChooseTensorPath("auto", threads, ranks, 1)->nccl) << ranks[1].device;
    }
  }
  EXPECT_FALSE(ChooseTensorPath("auto", true, kOwn, 0)->nccl) << "threads could block each other";
  EXPECT_TRUE(ChooseTensorPath("nccl", true, kOwn, 0)->nccl) << "but may be told to";
  EXPECT_TRUE(ChooseTensorPath("auto", false, kTwoHosts, 1)->nccl);
  EXPECT_FALSE(ChooseTensorPath("auto", false, {{"a", "cuda:0"}}, 0)->nccl) << "nobody to send to";
}

TEST(TensorPathTest, HostIsHost) {
  EXPECT_FALSE(ChooseTensorPath("host", false, kOwn, 0)->nccl);
  EXPECT_FALSE(ChooseTensorPath("host", true, kCpus, 0)->nccl);
}

TEST(TensorPathTest, ProcessesOnOneGpuLookLikeSeveralHostsToNccl) {
  for (int rank : {0, 1, 2}) {
    const auto path = ChooseTensorPath("nccl", false, kDealt, rank);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_TRUE(path->nccl);
    EXPECT_EQ(path->nccl_host, rank == 2 ? "a.1" : "a.0") << "rank " << rank;
  }
  EXPECT_EQ(ChooseTensorPath("nccl", false, kOwn, 1)->nccl_host, "");
}

TEST(TensorPathTest, GpusAndCpusDoNotMix) {
  for (const char* transport : {"auto", "host", "nccl"}) {
    const absl::Status status = ChooseTensorPath(transport, true, kMixed, 1).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 has cuda:0, rank 1 has cpu"));
  }
}

TEST(TensorPathTest, SaysWhyNcclCannotBe) {
  const auto why = [](bool threads, const std::vector<RankPlace>& ranks) {
    const absl::Status status = ChooseTensorPath("nccl", threads, ranks, 0).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(why(false, kCpus), HasSubstr("rank 0 has cpu, which is no GPU"));
  EXPECT_THAT(why(true, {{"a", "cpu"}}), HasSubstr("rank 0 has cpu"));
  EXPECT_THAT(why(true, kShared), HasSubstr("start them by mpirun"));
  EXPECT_THAT(why(false, {{"a", "cuda:0"}, {"a", "cuda:0"}, {"b", "cuda:0"}}),
              HasSubstr("use one host"));
}

}  // namespace
}  // namespace keyline
