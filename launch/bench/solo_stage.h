// SoloStage: some layers of a model as a stage without neighbours, so that its time can be measured
// on one device: what it would receive is random, what it sends goes nowhere. Thread: one.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "launch/wiring.h"
#include "runtime/pipeline/shard_plan.h"
#include "runtime/pipeline/stage.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline::bench {

// A piece of a prompt as steps carry it (runtime/engine/sequence.h).
struct PromptPiece {
  int first = 0;
  int tokens = 0;
  int chunk_first = 0;
  int chunk_tokens = 0;
};
// How a prompt of a single sequence is cut.
std::vector<PromptPiece> CutPrompt(const PipelineSpec& spec, int tokens);

class SoloStage {
 public:
  // `spec.shards` is not looked at; `shard` counts layers from 0.
  static absl::StatusOr<std::unique_ptr<SoloStage>> Create(Device& device,
                                                           const OpenedModel& opened,
                                                           const PipelineSpec& spec,
                                                           const ShardRange& shard);
  ~SoloStage();

  // Seconds of a step that decodes a token of each of `batch` sequences, out of `steps` in a row
  // behind prompts of `depth` tokens.
  absl::StatusOr<double> DecodeSeconds(int batch, int depth, int steps);
  // Seconds of each piece of a prompt; the last one samples.
  absl::StatusOr<std::vector<double>> PieceSeconds(const std::vector<PromptPiece>& pieces);

  Stage& stage();
  Communicator& communicator();

 private:
  class Nobody;
  SoloStage();
  void AddPiece(const PromptPiece& piece, int lane, bool sample, pipeline::StepPlan& plan) const;
  absl::Status OpenLanes(int count);
  absl::Status Run(pipeline::StepPlan& plan);

  std::unique_ptr<Nobody> nobody_;
  std::unique_ptr<Stage> stage_;
  uint64_t next_step_ = 1;
};

}  // namespace keyline::bench
