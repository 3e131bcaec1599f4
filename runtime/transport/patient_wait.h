// PatientWait: how a thread polls for something that may come at once or in a minute, without
// burning a core that another rank of the same host needs, and never longer than its deadline.
//
// It returns at once for the first 30 us (a message on its way arrives in about 10), then gives the
// core away between polls, then sleeps between them: a 64th of what it has waited, 20 to 100 us.
// Several ranks share cores here; MPI libraries that only spin take milliseconds a hop then.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace keyline {

// The steady clock's time after `timeout`; very long ones are cut to a year.
std::chrono::steady_clock::time_point DeadlineAfter(absl::Duration timeout);

// Lets this thread sleep for 20 us when it asks for 20: by default the kernel adds 50 or more.
void SleepPrecisely();

class PatientWait {
 public:
  explicit PatientWait(absl::Duration timeout);

  // Between two polls. False once the deadline has passed.
  bool Pause();

 private:
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point deadline_;
};

}  // namespace keyline
