// StepLimit: how long a step may take before whoever waits for it takes its peers for lost. Long
// enough for the slowest step seen, several times over, and short enough that a job whose rank
// hangs ends in seconds. Thread: one.
#pragma once

#include "absl/time/time.h"

namespace keyline {

class StepLimit {
 public:
  // For a step of `tokens`. Until one has been seen: 60 s and 0.2 s a token, since the first step
  // reads weights for the first time. Then: 20 times what the slowest one took, scaled by tokens,
  // but no less than 5 s. `states`: it saves or restores lanes, up to a GiB of each, which travels
  // between ranks; it has 60 s more for that.
  absl::Duration For(int tokens, bool states = false) const;
  // Of a step without states.
  void Took(absl::Duration time, int tokens);

 private:
  double slowest_ = 0;  // seconds per unit of work; 0: none seen
};

}  // namespace keyline
