// Stage: this rank's layers, caches and preallocated activations. Runs one StepPlan at a time, in
// the order of the plans. Thread: the rank's own.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "runtime/files/weight_source.h"
#include "runtime/model/decoder_model.h"
#include "runtime/pipeline/pipeline_spec.h"
#include "runtime/pipeline/step_plan.pb.h"
#include "runtime/transport/communicator.h"

namespace keyline {

class Stage {
 public:
  // Loads the weights of shard `rank` and allocates everything that steps will use. `progress` (may
  // be null) hears the bytes of each part as it is loaded. Everything must outlive the stage.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(
      Device& device, const WeightSource& source, const DecoderModel& model,
      const PipelineSpec& spec, int rank, const std::function<void(size_t bytes)>& progress);
  ~Stage();

  // Runs the plan's batches through this rank's layers: hidden states come from the previous rank
  // and go to the next. The result is this rank's part: tokens and scores on the last rank, hidden
  // states on the rank of their layer, traces, timing and lanes' states where the plan asks for
  // them. Where it is shows in comm.state(); on a device that works on its own the watchdog ends
  // the process if the step hangs.
  absl::StatusOr<pipeline::StepResult> Run(const pipeline::StepPlan& plan, Communicator& comm);

  // Whether rank `rank` of `ranks` owes rank 0 a StepResult for this plan.
  static bool Answers(const pipeline::StepPlan& plan, int rank, int ranks);

  const PipelineSpec& spec() const;
  const DecoderModel& model() const;
  size_t weight_bytes() const;
  size_t kv_bytes() const;

 private:
  struct Parts;
  explicit Stage(std::unique_ptr<Parts> parts);
  void SaveLane(int lane, pipeline::StepResult& result);
  void OpenLane(const pipeline::OpenLane& open, pipeline::StepResult& result);
  absl::Status RestoreLane(const pipeline::OpenLane& open);
  absl::StatusOr<pipeline::StepResult> RunBatches(const pipeline::StepPlan& plan,
                                                  Communicator& comm);
  // Embedding, where it is here, and layers, of the batch in the upload. Enqueues only, but for
  // hidden states that somebody asks for.
  void RunLayers(const pipeline::PlanBatch& plan, Activations& a, Communicator& comm,
                 pipeline::StepResult& result);
  // Logits of sampled rows [first, first + count), and a token of each. Enqueues only.
  TensorView DrawRows(int first, int count);
  // `drawn`: DrawRows has been called for all rows.
  void SampleRows(const pipeline::PlanBatch& batch, bool drawn, pipeline::StepResult& result);
  void ScoreRows(const pipeline::PlanBatch& batch, pipeline::StepResult& result);
  void ReadNormed(const pipeline::PlanBatch& batch, TensorView hidden,
                  pipeline::StepResult& result);
  void Trace(const pipeline::PlanBatch& batch, pipeline::StepResult& result);
  RmsNorm FinalNorm() const;
  TensorView Logits(const int32_t* rows, int count);

  std::unique_ptr<Parts> p_;
};

}  // namespace keyline
