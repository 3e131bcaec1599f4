#include "kernels/cpu/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace keyline {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, HandlesEveryIndexOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const int64_t count : {0, 1, 2, 3, 7, 8, 9, 1000}) {
    for (const int64_t grain : {1, 4, 5000}) {
      std::vector<int> hits(count, 0);  // not atomic: two threads on one index are a race
      pool.ParallelFor(
          count,
          [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++hits[i];
          },
          grain);
      EXPECT_EQ(hits, std::vector<int>(count, 1)) << count << ", " << grain;
    }
  }
}

TEST_P(ThreadPoolTest, LoopsSeeWhatEarlierLoopsWrote) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(97, 0);
  for (int round = 0; round < 3000; ++round) {
    pool.ParallelFor(97, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] = values[i] + 1;
    });
  }
  EXPECT_EQ(values, std::vector<int64_t>(97, 3000));
}

TEST_P(ThreadPoolTest, WorkersWakeAfterASleep) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // longer than workers spin
    std::atomic<int64_t> sum = 0;
    pool.ParallelFor(64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum += i;
    });
    EXPECT_EQ(sum, 64 * 63 / 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

// The thread that has the first index keeps it until all others are done.
TEST(ThreadPoolsTest, OthersTakeOverTheShareOfAThreadThatIsHeldUp) {
  for (const int threads : {2, 3, 8}) {
    ThreadPool pool(threads);
    const int64_t count = int64_t{threads} * ThreadPool::kPiecesPerThread;
    for (int round = 0; round < 20; ++round) {
      std::atomic<int64_t> done = 0;
      pool.ParallelFor(count, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(end - begin, 1);
        while (begin == 0 && done < count - 1) std::this_thread::yield();
        ++done;
      });
      EXPECT_EQ(done, count);
    }
  }
}

TEST(ThreadPoolsTest, SeveralRanksShareFewCores) {
  std::vector<std::thread> ranks;
  std::atomic<int64_t> total = 0;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&] {
      ThreadPool pool(3);
      for (int round = 0; round < 200; ++round) {
        pool.ParallelFor(10, [&](int64_t begin, int64_t end) { total += end - begin; });
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(total, 4 * 200 * 10);
}

}  // namespace
}  // namespace keyline
