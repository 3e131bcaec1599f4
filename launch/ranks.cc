#include "launch/ranks.h"

#include <glog/logging.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/progress.h"
#include "launch/rank_join.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/pipeline/plan_bytes.h"
#include "runtime/pipeline/stage.h"
#include "runtime/pipeline/worker.h"
#include "runtime/transport/communicator.h"
#include "runtime/transport/watchdog.h"

namespace keyline {
namespace {

// Loading a large model from a cold disk takes a while.
constexpr absl::Duration kLoadTimeout = absl::Minutes(30);

// One rank's own things; the stage last, so that it goes first.
struct Rank {
  std::unique_ptr<Device> device;
  std::unique_ptr<Stage> stage;
  pipeline::RankReady ready;
};

class Launcher {
 public:
  Launcher(const LaunchOptions& options, const OpenedModel& opened, PipelineSpec& spec, int ranks,
           Progress& progress)
      : options_(options), opened_(opened), spec_(spec), ranks_(ranks), progress_(progress) {}

  // Every rank but the first.
  absl::Status Serve(std::unique_ptr<Communicator>& comm) const {
    Rank own;
    absl::Status loaded = JoinRanks(options_, ranks_, comm, own.device).status();
    if (loaded.ok()) loaded = Load(comm->rank(), own);
    Report(comm->rank(), loaded, own.ready);
    comm->SendBytes(0, ToBytes(own.ready));
    if (!loaded.ok()) {
      // Rank 0 tells everybody to stop; take that message, and pass it on.
      const int next = comm->rank() + 1;
      ASSIGN_OR_RETURN(const Bytes stop,
                       comm->RecvBytes(next - 2, kLoadTimeout, "the end of the launch"));
      if (next < comm->size()) comm->SendBytes(next, stop);
      return loaded;
    }
    const absl::Status served = ServeSteps(*own.stage, *comm);
    // A process ends at once, and mpirun ends the others: MPI has no orderly end without a peer. A
    // thread leaves it to rank 0, which has clients to tell.
    if (!served.ok() && StartedByMpi()) EndLostRank(*comm->state(), Text(served));
    return served;
  }

  // Rank 0.
  absl::Status Lead(std::unique_ptr<Communicator>& comm, const RankZero& rank_zero) const {
    Rank own;
    absl::Status status = JoinRanks(options_, ranks_, comm, own.device).status();
    if (status.ok()) status = Load(0, own);
    Report(0, status, own.ready);
    std::vector<pipeline::RankReady> all = {own.ready};
    for (int r = 1; r < comm->size(); ++r) {
      pipeline::RankReady& ready = all.emplace_back();
      absl::StatusOr<Bytes> bytes = comm->RecvBytes(r, kLoadTimeout, "its loaded stage");
      if (!bytes.ok()) return bytes.status();  // a dead rank cannot be told to stop
      RETURN_IF_ERROR(FromBytes(*bytes, ready));
      if (status.ok() && ready.status_code() != 0) {
        status = absl::Status(static_cast<absl::StatusCode>(ready.status_code()),
                              ready.status_message());
      }
    }
    if (!status.ok()) {
      pipeline::StepPlan stop;
      stop.set_stop(true);
      if (comm->size() > 1) comm->SendBytes(1, ToBytes(stop));
      return status;
    }
    int sweep_tokens = 0;
    for (const pipeline::RankReady& ready : all) {
      sweep_tokens = std::max(sweep_tokens, ready.step_tokens());
    }
    Coordinator coordinator(*own.stage, *comm, sweep_tokens);
    comm->state()->Doing("decide what runs next");
    status = rank_zero(coordinator, all);
    // The other ranks may hang: neither join them nor take leave of them.
    if (!coordinator.lost().ok() && comm->size() > 1) {
      EndLostRank(*comm->state(), Text(coordinator.lost()));
    }
    return status;
  }

 private:
  absl::Status Load(int rank, Rank& out) const {
    ASSIGN_OR_RETURN(const OffloadPlan plan,
                     PlanRank(options_, *out.device, *opened_.model, spec_, rank));
    if (!options_.device_memory.empty()) {
      ASSIGN_OR_RETURN(const uint64_t most, ParseBytes(options_.device_memory));
      out.device->LimitMemory(most);
    }
    ASSIGN_OR_RETURN(out.stage, Stage::Create(
                                    *out.device, opened_.weights(), *opened_.model, spec_, rank,
                                    [this](size_t n) { progress_.Add(n); }, plan));
    out.ready.set_device(out.device->name());
    out.ready.set_device_description(out.device->description());
    out.ready.set_weight_bytes(out.stage->weight_bytes());
    out.ready.set_kv_bytes(out.stage->kv_bytes());
    out.ready.set_workspace_bytes(plan.device.workspace);
    out.ready.set_free_bytes(out.device->memory().free_bytes);
    if (!plan.streams()) return absl::OkStatus();
    out.ready.set_streamed_layers(plan.streamed_layers());
    out.ready.set_streamed_bytes(plan.streamed_bytes);
    out.ready.set_slots(plan.slots);
    out.ready.set_step_tokens(plan.step_tokens);
    out.ready.set_unpinned_layers(out.stage->unpinned_layers());
    LOG_IF(WARNING, out.ready.unpinned_layers() > 0)
        << "rank " << rank << ": host memory has no room for " << out.ready.unpinned_layers()
        << " layers that stream; each step reads them from the model's files, which is slow";
    return absl::OkStatus();
  }

  static std::string Text(const absl::Status& status) { return std::string(status.message()); }

  static void Report(int rank, const absl::Status& status, pipeline::RankReady& ready) {
    ready.set_rank(rank);
    ready.set_host(HostName());
    ready.set_status_code(static_cast<int>(status.code()));
    ready.set_status_message(std::string(status.message()));
  }

  const LaunchOptions& options_;
  const OpenedModel& opened_;
  const PipelineSpec& spec_;
  const int ranks_;
  Progress& progress_;
};

bool UsesGpus(const LaunchOptions& options) { return absl::StrContains(options.device, "cuda"); }

}  // namespace

void PrepareProcess(const LaunchOptions& options, int ranks) {
  if (StartedByMpi()) Watchdog::BlockSigterm();
  if (UsesGpus(options) && !StartedByMpi() && ranks > 1) SetNcclEnvironment("");
}

int ProcessRank() {
  const char* text = std::getenv("OMPI_COMM_WORLD_RANK");
  if (text == nullptr) text = std::getenv("PMIX_RANK");
  int rank = 0;
  return text != nullptr && absl::SimpleAtoi(text, &rank) ? rank : 0;
}

absl::Status RunPipeline(const LaunchOptions& options, const OpenedModel& opened, PipelineSpec spec,
                         bool show_progress, const RankZero& rank_zero) {
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  PrepareProcess(options, ranks);
  size_t total = 0;
  {
    const absl::StatusOr<std::unique_ptr<Device>> opened_device =
        OpenDevice(DeviceOfRank(options, ProcessRank()), {.threads = 1});
    if (!opened_device.ok()) {
      // No other rank may meet the same, and rank 0 alone speaks of what all meet.
      if (ProcessRank() > 0) {
        LOG(ERROR) << "rank " << ProcessRank() << ": " << opened_device.status();
      }
      return opened_device.status();
    }
    const std::unique_ptr<Device>& device = *opened_device;
    RETURN_IF_ERROR(FillShards(*device, *opened.model, ranks, spec));
    for (int r = 0; r < ranks; ++r) {
      if (StartedByMpi() && r != ProcessRank()) continue;
      ASSIGN_OR_RETURN(const StageBytes bytes, BytesOfStage(*device, *opened.model, spec, r));
      total += bytes.weights;
    }
  }
  if (const std::string warning = LaneWarning(spec.cache.policy, spec.cache_lengths);
      !warning.empty() && ProcessRank() == 0) {
    LOG(WARNING) << warning;
  }
  Progress progress(absl::StrCat("loading ", opened.name), total,
                    show_progress && ProcessRank() == 0);
  const Launcher launcher(options, opened, spec, ranks, progress);

  return PlayRanks(options, ranks, [&](std::unique_ptr<Communicator> comm) {
    return comm->rank() == 0 ? launcher.Lead(comm, rank_zero) : launcher.Serve(comm);
  });
}

absl::Status PlayRanks(const LaunchOptions& options, int ranks, const PlayRank& play) {
  PrepareProcess(options, ranks);
  if (StartedByMpi()) {
    ASSIGN_OR_RETURN(std::unique_ptr<Communicator> comm, MakeMpiCommunicator());
    const Watchdog watchdog({comm->state()}, /*takes_sigterm=*/true);
    return play(std::move(comm));
  }
  std::vector<std::unique_ptr<Communicator>> comms = MakeLocalCommunicators(ranks);
  std::optional<Watchdog> watchdog;
  if (UsesGpus(options)) {
    std::vector<std::shared_ptr<RankState>> states;
    for (const auto& comm : comms) states.push_back(comm->state());
    watchdog.emplace(std::move(states), /*takes_sigterm=*/false);
  }
  std::vector<std::thread> workers;
  for (int r = 1; r < ranks; ++r) {
    workers.emplace_back([&play, r, comm = std::move(comms[r])]() mutable {
      const absl::Status status = play(std::move(comm));
      // Rank 0 hears of it: a load error by message, a later one by the closed mailbox.
      if (!status.ok()) LOG(ERROR) << "rank " << r << ": " << status;
    });
  }
  const absl::Status status = play(std::move(comms[0]));
  for (std::thread& worker : workers) worker.join();
  return status;
}

}  // namespace keyline
