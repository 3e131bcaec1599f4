// Where a rank was can be read by others while it runs and after it was killed; the watchdog ends a
// process whose rank is overdue, with a message that says where it was.
#include "runtime/transport/rank_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/transport/watchdog.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class RankStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    std::string pattern = ::testing::TempDir() + "ranksXXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    setenv("KEYLINE_RANK_STATES", directory_.c_str(), 1);
  }
  void TearDown() override {
    unsetenv("KEYLINE_RANK_STATES");
    std::filesystem::remove_all(directory_);
  }

  std::string directory_;
};

TEST_F(RankStateTest, SaysWhereTheRankIs) {
  RankState state(3);
  EXPECT_EQ(state.text(), absl::StrCat("rank 3 pid ", getpid(), " step 0 layer - start"));
  state.Step(1234567);
  state.Layer(17);
  state.Doing("receive hidden states from rank 2");
  EXPECT_EQ(state.text(), absl::StrCat("rank 3 pid ", getpid(),
                                       " step 1234567 layer 17 receive hidden states from rank 2"));
  state.Step(9);
  state.Doing(std::string(500, 'x'));
  EXPECT_EQ(state.text(),
            absl::StrCat("rank 3 pid ", getpid(), " step 9 layer - ", std::string(64, 'x')));
}

TEST_F(RankStateTest, TheFileIsThereWhileTheRankIs) {
  EXPECT_EQ(RankState::JobDirectory(), directory_);
  {
    RankState state(1, directory_);
    state.Step(5);
    std::ifstream file(directory_ + "/rank.1");
    std::string line;
    ASSERT_TRUE(std::getline(file, line));
    EXPECT_THAT(line, ::testing::MatchesRegex("rank +1 pid +[0-9]+ step +5 layer - +start +"));
    EXPECT_THAT(RankState::GoneRanks(directory_), IsEmpty()) << "it lives";
  }
  EXPECT_FALSE(std::filesystem::exists(directory_)) << "the last one out removes the folder";
}

TEST_F(RankStateTest, AKilledRankIsFound) {
  const pid_t child = fork();
  if (child == 0) {
    auto* state = new RankState(1, directory_);
    state->Step(7);
    state->Layer(2);
    state->Doing("run the layer");
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_THAT(RankState::GoneRanks(directory_),
              ElementsAre(absl::StrCat("rank 1 pid ", child, " step 7 layer 2 run the layer")));
  // A file that says nothing of use is no rank.
  std::ofstream(directory_ + "/other") << std::string(300, '\1');
  EXPECT_EQ(RankState::GoneRanks(directory_).size(), 1u);
  EXPECT_THAT(RankState::GoneRanks(directory_ + "/none"), IsEmpty());
}

TEST_F(RankStateTest, ADirectoryThatIsNotThereIsNoError) {
  RankState state(2, directory_ + "/none/such");
  state.Step(4);
  EXPECT_EQ(state.text(), absl::StrCat("rank 2 pid ", getpid(), " step 4 layer - start"));
  std::filesystem::permissions(directory_, std::filesystem::perms::all);
  EXPECT_EQ(RankState::JobDirectory(), "") << "others could write there";
}

TEST_F(RankStateTest, JobsOfTheSameMpirunMeetAndEndedOnesAreSwept) {
  unsetenv("KEYLINE_RANK_STATES");
  const char* before = std::getenv("TMPDIR");
  const std::string kept = before != nullptr ? before : "";
  setenv("TMPDIR", directory_.c_str(), 1);
  const pid_t ended = fork();
  if (ended == 0) _exit(0);
  ASSERT_EQ(waitpid(ended, nullptr, 0), ended);
  const std::string prefix = absl::StrCat(directory_, "/keyline-ranks-", getuid(), ".");
  std::filesystem::create_directory(absl::StrCat(prefix, ended));
  std::filesystem::create_directory(absl::StrCat(prefix, getpid()));  // of one that runs
  std::filesystem::create_directory(prefix + "other");
  const std::string directory = RankState::JobDirectory();
  EXPECT_EQ(directory, absl::StrCat(prefix, getppid()));
  EXPECT_TRUE(std::filesystem::exists(directory));
  EXPECT_EQ(RankState::JobDirectory(), directory);
  EXPECT_FALSE(std::filesystem::exists(absl::StrCat(prefix, ended)));
  EXPECT_TRUE(std::filesystem::exists(absl::StrCat(prefix, getpid())));
  EXPECT_TRUE(std::filesystem::exists(prefix + "other"));
  before != nullptr ? setenv("TMPDIR", kept.c_str(), 1) : unsetenv("TMPDIR");
}

TEST_F(RankStateTest, ALostRankEndsWithItsOwnExitCode) {
  RankState state(0);
  state.Step(12);
  state.Layer(3);
  state.Doing("sample or score");
  EXPECT_EXIT(EndLostRank(state, "NCCL: remote error"), ::testing::ExitedWithCode(75),
              "rank 0 pid [0-9]+ step 12 layer 3 sample or score: NCCL: remote error");
}

TEST_F(RankStateTest, TheWatchdogEndsAnOverdueRank) {
  EXPECT_EXIT(
      {
        auto state = std::make_shared<RankState>(1);
        const Watchdog watchdog({state}, /*takes_sigterm=*/false);
        state->Step(8);
        state->Doing("receive hidden states from rank 0");
        state->Expect(absl::Milliseconds(100));
        absl::SleepFor(absl::Seconds(20));  // as a call that never returns
      },
      ::testing::ExitedWithCode(75),
      "rank 1 pid [0-9]+ step 8 layer - receive hidden states from rank 0: not done within 100ms");
}

TEST_F(RankStateTest, TheWatchdogLeavesAloneWhatEnds) {
  auto state = std::make_shared<RankState>(1);
  const absl::Time begin = absl::Now();
  {
    const Watchdog watchdog({state}, /*takes_sigterm=*/false);
    for (int i = 0; i < 3; ++i) {
      state->Expect(absl::Milliseconds(200));
      absl::SleepFor(absl::Milliseconds(30));
      state->Ended();
    }
    absl::SleepFor(absl::Milliseconds(300));
    absl::Duration limit;
    EXPECT_FALSE(state->overdue(&limit)) << "nothing is expected";
  }
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
}

TEST_F(RankStateTest, SigtermSaysWhereItWas) {
  EXPECT_EXIT(
      {
        Watchdog::BlockSigterm();
        auto state = std::make_shared<RankState>(2);
        state->Step(3);
        state->Doing("wait for the next step plan");
        const Watchdog watchdog({state}, /*takes_sigterm=*/true);
        kill(getpid(), SIGTERM);
        absl::SleepFor(absl::Seconds(20));
      },
      ::testing::ExitedWithCode(128 + SIGTERM),
      "rank 2 pid [0-9]+ step 3 layer - wait for the next step plan: ended by SIGTERM");
}

TEST_F(RankStateTest, AWatchdogThatTakesSigtermEndsInOrder) {
  Watchdog::BlockSigterm();
  auto state = std::make_shared<RankState>(0);
  for (int i = 0; i < 20; ++i) const Watchdog watchdog({state}, /*takes_sigterm=*/true);
  EXPECT_EQ(state->rank(), 0);
}

}  // namespace
}  // namespace keyline
