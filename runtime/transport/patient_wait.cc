#include "runtime/transport/patient_wait.h"

#include <sys/prctl.h>

#include <algorithm>
#include <thread>

namespace keyline {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr microseconds kSpin(30);
constexpr microseconds kYield(300);
constexpr microseconds kShortestSleep(20);
constexpr microseconds kLongestSleep(100);

Clock::time_point DeadlineAfter(absl::Duration timeout) {
  // An infinite one would overflow the clock.
  return Clock::now() + absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
}

void SleepPrecisely() { prctl(PR_SET_TIMERSLACK, 1000UL); }  // ns

PatientWait::PatientWait(absl::Duration timeout)
    : started_(Clock::now()), deadline_(DeadlineAfter(timeout)) {}

bool PatientWait::Pause() {
  const Clock::time_point now = Clock::now();
  if (now >= deadline_) return false;
  const Clock::duration waited = now - started_;
  if (waited < kSpin) return true;
  if (waited < kYield) {
    std::this_thread::yield();
  } else {
    const Clock::duration sleep =
        std::clamp<Clock::duration>(waited / 64, kShortestSleep, kLongestSleep);
    std::this_thread::sleep_for(std::min(sleep, deadline_ - now));
  }
  return true;
}

}  // namespace keyline
