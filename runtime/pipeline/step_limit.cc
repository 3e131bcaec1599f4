#include "runtime/pipeline/step_limit.h"

#include <algorithm>

namespace keyline {
namespace {

// A step reads all weights whatever its tokens: it costs as much as some 64 of them.
double Work(int tokens) { return 64.0 + tokens; }

}  // namespace

absl::Duration StepLimit::For(int tokens, bool states) const {
  if (states) return For(tokens) + absl::Seconds(60);
  if (slowest_ == 0) return absl::Seconds(60) + absl::Milliseconds(200) * tokens;
  return std::max(absl::Seconds(5), absl::Seconds(20 * slowest_ * Work(tokens)));
}

void StepLimit::Took(absl::Duration time, int tokens) {
  slowest_ = std::max(slowest_, absl::ToDoubleSeconds(time) / Work(tokens));
}

}  // namespace keyline
