// Stage: this rank's layers, caches and preallocated activations. Runs StepPlans in their order.
// Thread: the rank's own.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device/device.h"
#include "runtime/files/weight_source.h"
#include "runtime/model/decoder_model.h"
#include "runtime/pipeline/offload_plan.h"
#include "runtime/pipeline/pipeline_spec.h"
#include "runtime/pipeline/step_plan.pb.h"
#include "runtime/transport/communicator.h"

namespace keyline {

class Stage {
 public:
  // Loads the weights of shard `rank` and allocates everything that steps will use. `progress` (may
  // be null) hears the bytes of each part as it is loaded. `offload`: which layers stream; all that
  // is allocated on the device comes to offload.device at most. Everything must outlive the stage.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(
      Device& device, const WeightSource& source, const DecoderModel& model,
      const PipelineSpec& spec, int rank, const std::function<void(size_t bytes)>& progress,
      const OffloadPlan& offload = {});
  ~Stage();

  // A step in two parts, so that a device that works on its own need not pause between steps: the
  // next may begin before the last one has ended, kMostRunning at a time.
  //
  // Begin takes the plan's batches through this rank's layers: hidden states come from the previous
  // rank and go to the next. Where tokens are all that a plan asks for (AsksTokensOnly) it enqueues
  // and returns; otherwise it waits for what is asked for. Where it is shows in comm.state(); on a
  // device that works on its own the watchdog ends the process if the step hangs.
  // REQUIRES: no step is running, or this plan asks for tokens only.
  static constexpr int kMostRunning = 2;
  absl::Status Begin(const pipeline::StepPlan& plan, Communicator& comm);
  int running() const { return static_cast<int>(running_.size()); }
  // Whether End would return without waiting. REQUIRES: running() > 0.
  bool HasEnded() const;
  // The oldest step's result, this rank's part: tokens and scores on the last rank, hidden states
  // on the rank of their layer, traces, timing and lanes' states where the plan asks for them.
  pipeline::StepResult End(Communicator& comm);
  // Both parts.
  absl::StatusOr<pipeline::StepResult> Run(const pipeline::StepPlan& plan, Communicator& comm);

  const PipelineSpec& spec() const;
  const DecoderModel& model() const;
  // Whether the device computes while this thread does other things.
  bool works_on_its_own() const;
  size_t weight_bytes() const;
  size_t kv_bytes() const;
  // Of the layers that stream, those that host memory had no room for; see StreamedStore.
  int unpinned_layers() const;

 private:
  struct Parts;
  struct Pass;
  explicit Stage(std::unique_ptr<Parts> parts);
  // A step that has begun.
  struct Running {
    pipeline::StepResult result;
    absl::Time begin;
    int tokens;
    bool states;  // moves lanes' states
    bool ends_later;
    int place = 0;   // where the sampler puts its tokens
    int coming = 0;  // the last so many tokens of the result are still to be read there
  };
  absl::Status RunBatches(const pipeline::StepPlan& plan, Communicator& comm, Running& step);
  // Batches of the plan from `first` on that go through each layer together.
  int SweepSize(const pipeline::StepPlan& plan, int first) const;
  absl::Status Sweep(const pipeline::StepPlan& plan, std::span<Pass> passes, Communicator& comm,
                     Running& step);
  // A pass that a device can record: one token a chunk, and nobody who reads in between.
  void RunDecode(Pass& pass, Communicator& comm, Running& step);
  std::vector<Pass> Upload(const pipeline::StepPlan& plan, int first, int count, Running& step);
  // Hidden states of the rank before; the embedding on the first one.
  absl::Status Receive(const pipeline::StepPlan& plan, Pass& pass, Communicator& comm,
                       pipeline::StepResult& result);
  void Embed(Pass& pass);
  // One layer of it. Enqueues only, but for hidden states that somebody asks for.
  void RunLayer(int index, const LayerWeights& weights, Pass& pass, pipeline::StepResult& result);
  // Behind its last layer here: to the next rank, or to tokens and scores. `drawn`: DrawRows has
  // been called for all rows.
  void Finish(Pass& pass, bool drawn, Communicator& comm, Running& step);
  // Logits of sampled rows [first, first + count), and a token of each. Enqueues only.
  TensorView DrawRows(const Pass& pass, int first, int count);
  void SampleRows(const Pass& pass, bool drawn, Running& step);
  // Waits for the step's tokens.
  void TakeTokens(Running& step);
  void ScoreRows(const Pass& pass, pipeline::StepResult& result);
  void ReadNormed(const Pass& pass, pipeline::StepResult& result);
  void Trace(int index, const Pass& pass, pipeline::StepResult& result);
  RmsNorm FinalNorm() const;
  TensorView Logits(const Pass& pass, const int32_t* rows, int count);

  std::unique_ptr<Parts> p_;
  std::deque<Running> running_;  // oldest first
};

}  // namespace keyline
