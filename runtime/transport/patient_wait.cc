#include "runtime/transport/patient_wait.h"

#include <algorithm>
#include <thread>

namespace keyline {

using Clock = std::chrono::steady_clock;

Clock::time_point DeadlineAfter(absl::Duration timeout) {
  // An infinite one would overflow the clock.
  return Clock::now() + absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
}

PatientWait::PatientWait(absl::Duration timeout)
    : started_(Clock::now()), deadline_(DeadlineAfter(timeout)) {}

bool PatientWait::Pause() {
  const Clock::time_point now = Clock::now();
  if (now >= deadline_) return false;
  const auto waited = now - started_;
  if (waited < kSpin) return true;
  if (waited < kYield) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::min<Clock::duration>(kSleep, deadline_ - now));
  }
  return true;
}

}  // namespace keyline
