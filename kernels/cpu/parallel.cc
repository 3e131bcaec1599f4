#include "kernels/cpu/parallel.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>

namespace keyline {
namespace {

// Compute threads of all pools of this process: several ranks may share it.
std::atomic<int>& ThreadsOfProcess() {
  static std::atomic<int> threads{0};
  return threads;
}

bool Oversubscribed() {
  return ThreadsOfProcess().load(std::memory_order_relaxed) >
         static_cast<int>(std::thread::hardware_concurrency());
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

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

ThreadPool::ThreadPool(int threads) {
  CHECK_GE(threads, 1);
  ThreadsOfProcess() += threads;
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { RunWorker(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  ThreadsOfProcess() -= threads();
}

void ThreadPool::ClaimPieces() {
  for (;;) {
    const int64_t piece = next_piece_.fetch_add(1, std::memory_order_relaxed);
    if (piece >= pieces_) return;
    (*body_)(count_ * piece / pieces_, count_ * (piece + 1) / pieces_);
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
  next_piece_.store(0, std::memory_order_relaxed);
  epoch_.fetch_add(1);  // open
  if (sleeping_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }  // a worker about to sleep is asleep after this
    wake_.notify_all();
  }
  ClaimPieces();
  epoch_.fetch_add(1);  // closed
  const auto all_left = [this] { return inside_.load() == 0; };
  while (!SpinUntil(std::chrono::microseconds(20), all_left)) std::this_thread::yield();
}

void ThreadPool::RunWorker() {
  uint64_t seen = 0;
  for (;;) {
    const auto changed = [&] { return epoch_.load() != seen || stop_.load(); };
    if (!SpinUntil(SpinTime(), changed)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleeping_;
      wake_.wait(lock, changed);
      --sleeping_;
    }
    if (stop_.load()) return;
    ++inside_;
    seen = epoch_.load();
    if (seen % 2 == 1) ClaimPieces();
    --inside_;
  }
}

}  // namespace keyline
