// Scheduler: which chunks run next. No thread and no clock of its own, so that it can be simulated.
//
// Sequences join and leave at any step. A step carries the decode tokens of one micro-batch (there
// are as many micro-batches as steps may be in flight, so that all stages have work) and, in what
// room is left, chunks of prompts, oldest request first. Chunk boundaries come with the sequence;
// the scheduler only cuts pieces of first chunks, which changes nothing but the time they take.
// Where layers stream through a device (sweep_tokens), a step has all that is at hand, so that the
// weights come once for it: the decode tokens of all lanes, and further passes over prompts.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/engine/lane_keeper.h"
#include "runtime/engine/sequence.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

struct SchedulerLimits {
  int lanes = 1;
  int max_pass_tokens = 512;  // REQUIRES: >= lanes + the longest chunk after the first
  int groups = 1;             // micro-batches; the pipeline's depth
  bool ahead = false;         // decode steps may begin with tokens that are in flight
  int states_per_step = 1;    // most lanes that one step restores, and that it saves
  // Most tokens of a step, in passes that all go through a layer before the next, or 0: one pass a
  // step.
  int sweep_tokens = 0;
};

// A step and the sequences that its chunks belong to (results come by lane).
struct ScheduledStep {
  pipeline::StepPlan plan;
  std::vector<std::shared_ptr<Sequence>> by_lane;  // [lanes], null: none
  std::vector<LaneSave> saves;                     // of the plan's `save`, in that order
};

class Scheduler {
 public:
  // `keeper` may be null; else it must outlive the scheduler.
  explicit Scheduler(const SchedulerLimits& limits, LaneKeeper* keeper = nullptr);

  void Enqueue(std::shared_ptr<Sequence> sequence);
  // Ends a sequence, running or queued: its lane is free for the next plan. Results of its steps in
  // flight must be ignored by the caller. Returns it, or null if unknown. Where `kept_lane` is
  // given, its lane (-1: it had none) is the caller's, until FreeLane.
  std::shared_ptr<Sequence> Remove(RequestId id, int* kept_lane = nullptr);
  void FreeLane(int lane) { free_lanes_.push_back(lane); }
  // The next step, or nothing where all sequences wait for results. A step may have no chunks,
  // where lanes are restored or saved. Admits queued sequences to free lanes; `started` hears of
  // each.
  std::optional<ScheduledStep> NextStep(std::vector<std::shared_ptr<Sequence>>* started);

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  bool idle() const { return running_.empty() && waiting_.empty(); }
  // All sequences, running first.
  std::vector<std::shared_ptr<Sequence>> All() const;
  // Those that cannot go on: their session is lost, or their deadline has passed.
  std::vector<std::shared_ptr<Sequence>> Overdue(absl::Time now) const;

 private:
  void Admit(ScheduledStep& step, std::vector<std::shared_ptr<Sequence>>* started);
  void Start(std::shared_ptr<Sequence> sequence, pipeline::OpenLane& open);
  int TakeLane(ScheduledStep& step);
  // What room `budget` tokens leave in the step's next pass is filled with chunks of prompts.
  void AddPrompts(ScheduledStep& step, pipeline::PlanBatch& batch, int budget);

  // A piece of one token would be attended as a decode token is, by other kernels of a GPU and so
  // with other roundings than where others leave it more room. With room for more than this behind
  // the decode tokens of all lanes, which the runtime sees to, each step has a piece.
  static constexpr int kLeastPiece = 2;

  SchedulerLimits limits_;
  LaneKeeper* keeper_;
  int least_piece_;
  std::deque<std::shared_ptr<Sequence>> waiting_;
  std::vector<std::shared_ptr<Sequence>> running_;  // oldest first
  std::vector<int> free_lanes_;                     // highest first, so that lane 0 is used first
  std::vector<int> group_size_;
  int next_group_ = 0;
};

}  // namespace keyline
