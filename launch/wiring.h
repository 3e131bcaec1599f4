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
#include "runtime/pipeline/offload_plan.h"
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

// What a rank may take of its device, as --offload and --device-memory say, else what the device
// has free, shared among the ranks that it is dealt to.
struct RankMemory {
  Offload mode = Offload::kAuto;
  size_t limit = 0;
  std::string where;  // "allowed by --device-memory"
};
absl::StatusOr<RankMemory> MemoryOfRank(const LaunchOptions& options, const Device& device,
                                        int ranks);

// Which of the rank's layers stay on its device and which stream. RESOURCE_EXHAUSTED says what
// would do. REQUIRES: spec.shards is filled in.
absl::StatusOr<OffloadPlan> PlanRank(const LaunchOptions& options, const Device& device,
                                     const DecoderModel& model, const PipelineSpec& spec, int rank);

}  // namespace keyline
