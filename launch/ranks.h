// Ranks: plays every rank of a pipeline, as threads of this process or as one MPI process.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "launch/wiring.h"
#include "runtime/pipeline/coordinator.h"
#include "runtime/pipeline/step_plan.pb.h"
#include "runtime/transport/communicator.h"

namespace keyline {

// What rank 0 does once all ranks are ready. It must leave no step in flight, and the workers ended
// (Engine::Run does both).
using RankZero = std::function<absl::Status(Coordinator& coordinator,
                                            const std::vector<pipeline::RankReady>& ranks)>;

// Loads and runs the pipeline; fills in spec.shards. Returns when all ranks have ended, with rank
// 0's status, or this process's own on other MPI ranks (`rank_zero` is not called there).
// `show_progress`: a bar on a terminal while weights load, log lines elsewhere.
absl::Status RunPipeline(const LaunchOptions& options, const OpenedModel& opened, PipelineSpec spec,
                         bool show_progress, const RankZero& rank_zero);

// Before any thread or CUDA call of this process: its signals go to the watchdog, and NCCL finds
// its environment. RunPipeline and PlayRanks call it, too; again does no harm.
void PrepareProcess(const LaunchOptions& options, int ranks);

// What a rank does with its communicator, which is gone when it returns, so that peers hear of an
// early end.
using PlayRank = std::function<absl::Status(std::unique_ptr<Communicator>)>;

// Calls `play` once for each rank, in a thread each, or once in this MPI process, with a watchdog
// over them where it can help. Returns when all have ended, with rank 0's status, or this process's
// own.
absl::Status PlayRanks(const LaunchOptions& options, int ranks, const PlayRank& play);

// Rank of this process under mpirun, 0 elsewhere. From the environment, without MPI.
int ProcessRank();

}  // namespace keyline
