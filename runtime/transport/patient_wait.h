// PatientWait: how a thread polls for something that may come at once or in a minute, without
// burning a core that another rank of the same host needs, and never longer than its deadline.
//
// It returns at once for kSpin (a message on its way arrives in about 10 us), then gives the core
// away between polls, then sleeps between them. Several ranks share cores here: MPI libraries that
// only spin take milliseconds a hop then.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace keyline {

// The steady clock's time after `timeout`; very long ones are cut to a year.
std::chrono::steady_clock::time_point DeadlineAfter(absl::Duration timeout);

class PatientWait {
 public:
  explicit PatientWait(absl::Duration timeout);

  // Between two polls. False once the deadline has passed.
  bool Pause();

 private:
  static constexpr auto kSpin = std::chrono::microseconds(30);
  static constexpr auto kYield = std::chrono::microseconds(300);
  static constexpr auto kSleep = std::chrono::microseconds(50);  // plus the kernel's slack of 50 us

  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point deadline_;
};

}  // namespace keyline
