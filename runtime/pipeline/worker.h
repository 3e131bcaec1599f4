// Worker: serves steps on every rank but the first. Receives plans from the previous rank, passes
// each on at once, runs it, and answers rank 0 where an answer is owed.
#pragma once

#include "absl/status/status.h"
#include "runtime/pipeline/stage.h"
#include "runtime/transport/communicator.h"

namespace keyline {

// Until a plan says stop. An error names rank and step; the caller ends the process (or the
// thread), which ends the job.
absl::Status ServeSteps(Stage& stage, Communicator& comm);

}  // namespace keyline
