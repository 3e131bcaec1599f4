#include "kernels/cpu/parallel.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>

namespace keyline {
namespace {

// Compute threads of all pools of this process that have had work of late: several ranks may share
// it. A pool that rests, as that of a probe does while a model runs, takes no core from others.
std::atomic<int>& ThreadsOfProcess() {
  static std::atomic<int> threads{0};
  return threads;
}

bool Oversubscribed() {
  // Asked for once: the answer is read from files of the operating system, which takes longer than
  // a loop.
  static const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return ThreadsOfProcess().load(std::memory_order_relaxed) > cores;
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A worker that has slept for so long rests.
constexpr std::chrono::milliseconds kRest{10};

// How long a worker waits for the next loop before it sleeps. Where threads outnumber cores a
// spinning worker takes the core from one that has work.
std::chrono::nanoseconds SpinTime() {
  return Oversubscribed() ? std::chrono::microseconds(2) : std::chrono::microseconds(40);
}

// Spins until done() or the time is over; true if done.
template <class Done>
bool SpinUntil(std::chrono::nanoseconds limit, const Done& done) {
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads) : shares_(threads) {
  CHECK_GE(threads, 1);
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { RunWorker(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ClaimPieces(int thread) {
  for (int i = 0; i < threads(); ++i) {
    Share& share = shares_[(thread + i) % threads()];
    for (;;) {
      const int64_t piece = share.next.fetch_add(1, std::memory_order_relaxed);
      if (piece >= share.end) break;
      (*body_)(count_ * piece / pieces_, count_ * (piece + 1) / pieces_);
    }
  }
}

void ThreadPool::ParallelFor(int64_t count, Body body, int64_t grain) {
  if (count <= 0) return;
  const int64_t pieces = std::min(count / grain, int64_t{threads()} * kPiecesPerThread);
  if (workers_.empty() || pieces <= 1) {
    body(0, count);
    return;
  }
  body_ = &body;
  count_ = count;
  pieces_ = pieces;
  for (int64_t i = 0; i < threads(); ++i) {
    shares_[i].next.store(pieces * i / threads(), std::memory_order_relaxed);
    shares_[i].end = pieces * (i + 1) / threads();
  }
  epoch_.fetch_add(1);  // open
  if (sleeping_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }  // a worker about to sleep is asleep after this
    wake_.notify_all();
  }
  ClaimPieces(0);
  epoch_.fetch_add(1);  // closed
  const auto all_left = [this] { return inside_.load() == 0; };
  while (!SpinUntil(std::chrono::microseconds(20), all_left)) std::this_thread::yield();
}

void ThreadPool::RunWorker(int thread) {
  const int counted = thread == 1 ? 2 : 1;  // the first one counts the caller in
  ThreadsOfProcess() += counted;
  uint64_t seen = 0;
  for (;;) {
    WaitForWork(seen, counted);
    if (stop_.load()) break;
    ++inside_;
    seen = epoch_.load();
    if (seen % 2 == 1) ClaimPieces(thread);
    --inside_;
  }
  ThreadsOfProcess() -= counted;
}

// Returns when epoch_ is another or the pool stops.
void ThreadPool::WaitForWork(uint64_t seen, int counted) {
  const auto changed = [&] { return epoch_.load() != seen || stop_.load(); };
  if (SpinUntil(SpinTime(), changed)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleeping_;
  if (!wake_.wait_for(lock, kRest, changed)) {
    ThreadsOfProcess() -= counted;
    wake_.wait(lock, changed);
    ThreadsOfProcess() += counted;
  }
  --sleeping_;
}

}  // namespace keyline
