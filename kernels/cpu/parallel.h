// ThreadPool: splits a loop over the cores. One per CpuDevice; the thread that uses the device
// takes part in every loop, so a pool of N has N - 1 threads of its own and a pool of one has none.
//
// A loop costs about 2 us. Idle workers spin for some tens of microseconds, so that the operations
// of one step follow each other without system calls, then sleep, so that an idle server uses no
// core. Each thread has a share of the loop, one stretch of memory where the loop is over memory,
// claims it piece by piece and then what others have not yet claimed of theirs: a loop never waits
// for a worker that the operating system has not yet run, which keeps several ranks on few cores
// from starving each other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace keyline {

class ThreadPool {
 public:
  // Body of a loop: handles [begin, end).
  using Body = absl::FunctionRef<void(int64_t begin, int64_t end)>;

  // A loop falls into this many pieces for each thread: a thread that was interrupted delays the
  // loop by one of them only.
  static constexpr int kPiecesPerThread = 16;

  explicit ThreadPool(int threads);  // REQUIRES: threads >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls `body` with disjoint ranges that cover [0, count); returns when all are done. Which
  // thread gets which range is not fixed, so a body's results must not depend on the split. One
  // caller at a time; not from within a body. A range holds at least `grain` (but for a shorter
  // whole): give what is worth a microsecond or more.
  void ParallelFor(int64_t count, Body body, int64_t grain = 1);

 private:
  // Pieces of one thread that nobody has claimed: [next, end).
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void RunWorker(int thread);
  void WaitForWork(uint64_t seen, int counted);
  void ClaimPieces(int thread);

  // The loop under way: written by the caller while no worker is inside.
  std::vector<Share> shares_;  // one a thread, the caller's first
  const Body* body_ = nullptr;
  int64_t count_ = 0;
  int64_t pieces_ = 0;

  // epoch_ is odd while a loop is open. A worker counts itself into inside_ before it looks at
  // epoch_; the caller closes the epoch before it looks at inside_. So either the worker sees the
  // closed epoch and leaves the loop alone, or the caller sees the worker and waits for it.
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int> inside_{0};

  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace keyline
