#include "runtime/pipeline/worker.h"

#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/pipeline/plan_bytes.h"
#include "runtime/pipeline/plan_facts.h"

namespace keyline {
namespace {

// Steps of one rank. The last rank begins a step while the one before is still under way, where it
// can: its device would otherwise stand still until rank 0 has the tokens.
class StepLoop {
 public:
  StepLoop(Stage& stage, Communicator& comm) : stage_(stage), comm_(comm) {}

  absl::Status Run() {
    for (;;) {
      if (stage_.running() > 0 && !PlanComesFirst()) Answer();
      comm_.state()->Doing("wait for the next step plan");
      // Idle servers wait here: no deadline. A lost rank 0 ends the job by other means (mpirun, or
      // the closed mailbox of a thread).
      ASSIGN_OR_RETURN(Bytes bytes, comm_.RecvBytes(comm_.rank() - 1, absl::InfiniteDuration(),
                                                    "the next step plan"));
      if (!last()) comm_.SendBytes(comm_.rank() + 1, bytes);
      pipeline::StepPlan plan;
      RETURN_IF_ERROR(FromBytes(bytes, plan));
      if (stage_.running() > 0 && (plan.stop() || !AsksTokensOnly(plan))) Answer();
      if (plan.stop()) return absl::OkStatus();
      if (const absl::Status status = stage_.Begin(plan, comm_); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("rank ", comm_.rank(), ", step ", plan.step(), ": ",
                                         std::string(status.message())));
      }
      if (!last()) {
        const pipeline::StepResult result = stage_.End(comm_);
        if (Answers(plan, comm_.rank(), comm_.size())) comm_.SendBytes(0, ToBytes(result));
        continue;
      }
      // One at a time stays under way, and none where the next one's hidden states would have to be
      // waited for before this one's tokens could be sent.
      while (stage_.running() > 1) Answer();
      if (stage_.running() > 0 && (stage_.HasEnded() || !comm_.EnqueuesTensors())) Answer();
    }
  }

 private:
  bool last() const { return comm_.rank() + 1 == comm_.size(); }

  // Waits until either the next plan is there or the step under way has ended.
  bool PlanComesFirst() {
    while (!comm_.HasBytes(comm_.rank() - 1)) {
      if (stage_.HasEnded()) return false;
      comm_.Progress();
      std::this_thread::yield();
    }
    return true;
  }

  // The last rank answers every plan.
  void Answer() { comm_.SendBytes(0, ToBytes(stage_.End(comm_))); }

  Stage& stage_;
  Communicator& comm_;
};

}  // namespace

absl::Status ServeSteps(Stage& stage, Communicator& comm) { return StepLoop(stage, comm).Run(); }

}  // namespace keyline
