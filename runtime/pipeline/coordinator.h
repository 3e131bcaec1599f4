// Coordinator: rank 0's side of the pipeline. Launches steps (running rank 0's own stage) and
// collects results, oldest first. Thread: the engine's.
#pragma once

#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/pipeline/stage.h"
#include "runtime/pipeline/step_limit.h"
#include "runtime/transport/communicator.h"

namespace keyline {

class Coordinator {
 public:
  // Both must outlive the coordinator. `sweep_tokens`: tokens that a step may have so that one
  // sweep of streamed layers serves them all, the most that any rank takes; 0: no rank's layers
  // stream. REQUIRES: comm.rank() == 0.
  Coordinator(Stage& stage, Communicator& comm, int sweep_tokens = 0);

  const PipelineSpec& spec() const { return stage_->spec(); }
  const DecoderModel& model() const { return stage_->model(); }
  int sweep_tokens() const { return sweep_tokens_; }

  // Whether a step may be launched while the tokens that it begins with are still being drawn
  // (PlanChunk.token_is_drawn): where this rank is the only one and its device works on its own,
  // which would otherwise stand still from one step to the next.
  bool runs_ahead() const { return runs_ahead_; }
  // The other way, for tests and measurements. REQUIRES: one rank, if `on`; nothing is in flight.
  void RunAhead(bool on);

  // Sends the plan down the pipeline and runs this rank's part. `plan.step` is filled in.
  // REQUIRES: in_flight() < most_in_flight().
  absl::Status Launch(pipeline::StepPlan plan);
  int in_flight() const { return static_cast<int>(flights_.size()); }
  int most_in_flight() const { return runs_ahead_ ? Stage::kMostRunning : spec().pipeline_depth; }
  // Whether Collect would return without waiting. REQUIRES: in_flight() > 0.
  bool ResultReady();
  // The oldest step's result, all ranks' parts merged: tokens and scores of the last rank,
  // hidden states of their layers' ranks, traces and saved lanes
  // with all layers, `timings` one a rank where asked for.
  struct Result {
    pipeline::StepResult merged;
    std::vector<pipeline::StageTiming> timings;
  };
  absl::StatusOr<Result> Collect();
  // Not OK once a step was lost: with it the pipeline, whose other ranks may wait forever.
  const absl::Status& lost() const { return lost_; }
  // Ends the workers. Steps in flight must have been collected.
  void Shutdown();

 private:
  struct Flight {
    uint64_t step;
    int tokens;
    bool states;  // saves or restores lanes
    absl::Time begin;
    std::vector<int> owing;  // ranks whose results are awaited
    pipeline::StepResult own;
    bool running = false;  // `own` is still to come
  };
  // Waits for the oldest step that the stage still runs.
  void EndStep();
  absl::StatusOr<pipeline::StepResult> Await(int rank, const Flight& flight);

  Stage* stage_;
  Communicator* comm_;
  int sweep_tokens_;
  bool runs_ahead_;
  StepLimit limit_;
  absl::Status lost_;
  uint64_t next_step_ = 1;
  std::deque<Flight> flights_;
};

}  // namespace keyline
