// StageTimes: what a pipeline's steps are made of, measured on the devices at hand, for any number
// of ranks. A stage of n layers takes fixed + n * layer; the first one embeds, the last one has the
// head. Layers are measured in two stages of unlike depth, so a model need not fit the devices.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/bench/bench_run.h"
#include "launch/bench/pipeline_simulation.h"
#include "launch/bench/solo_stage.h"
#include "runtime/pipeline/shard_plan.h"

namespace keyline::bench {

// Seconds of a step's parts.
struct PartTimes {
  double fixed = 0;  // of a stage, whatever its layers
  double layer = 0;
  double embedding = 0;
  double head = 0;
  double Stage(const ShardRange& shard) const {
    return fixed + layer * shard.layers + (shard.embedding ? embedding : 0) +
           (shard.head ? head : 0);
  }
};

struct DecodeTimes {
  int batch = 1;
  PartTimes step;
  double turnaround = 0;  // PipelineSetting's
  HopTime hop;
};

struct StageTimes {
  std::string device;
  std::string transport;  // "local", "nccl"; "" on one rank, where hops are free
  bool devices_run_alone = false;
  bool last_receives_ahead = false;
  double answer = 0;
  std::vector<DecodeTimes> decode;  // one a --batch
  std::vector<PromptPiece> pieces;  // of a prompt of --prompt tokens
  std::vector<PartTimes> piece;     // one a piece
  double piece_turnaround = 0;      // PipelineSetting's, between pieces
  HopTime piece_hop;                // of the largest
};

// Measures on `ranks` devices at once, as busy as a pipeline keeps them, and between the first two.
// `args.batch` are those of one micro-batch.
absl::StatusOr<StageTimes> MeasureStageTimes(const Run& run, int ranks);

}  // namespace keyline::bench
