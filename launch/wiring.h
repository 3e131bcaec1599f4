// Wiring: from flags to a running pipeline. The only part that sees every folder.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/options.h"
#include "runtime/files/checkpoint.h"
#include "runtime/model/decoder_model.h"
#include "runtime/pipeline/pipeline_spec.h"
#include "runtime/text/tokenizer.h"
#include "runtime/weights/random_source.h"

namespace keyline {

// A model ready to be loaded: configuration checked, headers read, no weight touched.
struct OpenedModel {
  std::string name;
  std::optional<Checkpoint> checkpoint;  // none for a shape
  std::unique_ptr<RandomSource> random;  // a shape's weights
  std::unique_ptr<DecoderModel> model;
  std::unique_ptr<Tokenizer> tokenizer;  // may be null

  const WeightSource& weights() const {
    return checkpoint.has_value() ? *checkpoint->weights : *random;
  }
};

enum class NeedTokenizer { kNo, kYes };
absl::StatusOr<OpenedModel> OpenModel(const std::string& path, NeedTokenizer need);

// Random weights of a well-known shape, for benchmarks of sequences of up to `positions` tokens.
// INVALID_ARGUMENT lists the shapes.
absl::StatusOr<OpenedModel> OpenShape(const std::string& shape, int positions);
std::vector<std::string> ShapeNames();

// What a command needs of the pipeline where the flags leave it open.
struct PipelineNeeds {
  int lanes = 1;
  int cache_length = 0;     // 0: the model's positions
  int max_pass_tokens = 0;  // 0: chosen
};

// Everything but the shards. INVALID_ARGUMENT names the flag.
absl::StatusOr<PipelineSpec> MakeSpec(const LaunchOptions& options, const OpenedModel& opened,
                                      const PipelineNeeds& needs);

// Sequences that `serve` runs at a time unless told otherwise.
constexpr int kServeLanes = 16;

// Fills in spec.shards: layers balanced by bytes over `ranks`. `device` knows how weights are
// packed.
absl::Status FillShards(const Device& device, const DecoderModel& model, int ranks,
                        PipelineSpec& spec);

// Ranks asked for: --ranks, or MPI's world. INVALID_ARGUMENT where the two disagree.
absl::StatusOr<int> NumberOfRanks(const LaunchOptions& options);
// The device of a rank: --device's list is dealt in turn, under mpirun on each host (for its own).
std::string DeviceOfRank(const LaunchOptions& options, int rank);
// Compute threads of each of this process's ranks.
int ThreadsOfRank(const LaunchOptions& options, int ranks);

// INVALID_ARGUMENT / RESOURCE_EXHAUSTED with the numbers where a stage does not fit --device-memory
// or what its device has free.
absl::Status CheckFits(const LaunchOptions& options, const Device& device, const StageBytes& bytes,
                       int rank);

}  // namespace keyline
