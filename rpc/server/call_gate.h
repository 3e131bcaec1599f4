// CallGate: counts the calls that run, and once closed lets no more in: what a drain waits for.
// Thread: any.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/time/time.h"

namespace keyline {

class CallGate {
 public:
  // A running call; its end is the ticket's.
  class Ticket {
   public:
    explicit Ticket(CallGate* gate) : gate_(gate) {}
    Ticket(Ticket&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (gate_ != nullptr) gate_->Leave();
    }

   private:
    CallGate* gate_;
  };

  // None once the gate is closed.
  std::optional<Ticket> Enter() {
    std::lock_guard lock(mutex_);
    if (closed_) return std::nullopt;
    ++running_;
    return Ticket(this);
  }

  void Close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }

  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }

  // True once no call runs; false if some still do after `limit`.
  bool WaitEmpty(absl::Duration limit) {
    std::unique_lock lock(mutex_);
    return empty_.wait_for(lock, absl::ToChronoMilliseconds(limit), [&] { return running_ == 0; });
  }

 private:
  void Leave() {
    std::lock_guard lock(mutex_);
    if (--running_ == 0) empty_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable empty_;
  int running_ = 0;
  bool closed_ = false;
};

}  // namespace keyline
