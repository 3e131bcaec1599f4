#include "runtime/pipeline/worker.h"

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/pipeline/plan_bytes.h"

namespace keyline {

absl::Status ServeSteps(Stage& stage, Communicator& comm) {
  const int rank = comm.rank();
  const int ranks = comm.size();
  for (;;) {
    comm.state()->Doing("wait for the next step plan");
    // Idle servers wait here: no deadline. A lost rank 0 ends the job by other means (mpirun, or
    // the closed mailbox of a thread).
    ASSIGN_OR_RETURN(Bytes bytes,
                     comm.RecvBytes(rank - 1, absl::InfiniteDuration(), "the next step plan"));
    if (rank + 1 < ranks) comm.SendBytes(rank + 1, bytes);
    pipeline::StepPlan plan;
    RETURN_IF_ERROR(FromBytes(bytes, plan));
    if (plan.stop()) return absl::OkStatus();
    absl::StatusOr<pipeline::StepResult> result = stage.Run(plan, comm);
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          absl::StrCat("rank ", rank, ", step ", plan.step(), ": ",
                                       std::string(result.status().message())));
    }
    if (Stage::Answers(plan, rank, ranks)) comm.SendBytes(0, ToBytes(*result));
  }
}

}  // namespace keyline
