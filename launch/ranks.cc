#include "launch/ranks.h"

#include <glog/logging.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/progress.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/pipeline/plan_bytes.h"
#include "runtime/pipeline/stage.h"
#include "runtime/pipeline/worker.h"
#include "runtime/transport/communicator.h"

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

  absl::Status Load(int rank, Rank& out) const {
    RETURN_IF_ERROR(OpenRankDevice(rank, out));
    ASSIGN_OR_RETURN(const StageBytes bytes,
                     BytesOfStage(*out.device, *opened_.model, spec_, rank));
    RETURN_IF_ERROR(CheckFits(options_, *out.device, bytes, rank));
    ASSIGN_OR_RETURN(out.stage, Stage::Create(*out.device, opened_.weights(), *opened_.model, spec_,
                                              rank, [this](size_t n) { progress_.Add(n); }));
    out.ready.set_device(out.device->name());
    out.ready.set_device_description(out.device->description());
    out.ready.set_weight_bytes(out.stage->weight_bytes());
    out.ready.set_kv_bytes(out.stage->kv_bytes());
    out.ready.set_workspace_bytes(bytes.workspace);
    out.ready.set_free_bytes(out.device->memory().free_bytes);
    return absl::OkStatus();
  }

  // Every rank but the first.
  absl::Status Serve(Communicator& comm) const {
    Rank rank;
    const absl::Status loaded = Load(comm.rank(), rank);
    Report(comm.rank(), loaded, rank.ready);
    comm.SendBytes(0, ToBytes(rank.ready));
    if (loaded.ok()) return ServeSteps(*rank.stage, comm);
    // Rank 0 tells everybody to stop; take that message, and pass it on.
    ASSIGN_OR_RETURN(const Bytes stop,
                     comm.RecvBytes(comm.rank() - 1, kLoadTimeout, "the end of the launch"));
    if (comm.rank() + 1 < comm.size()) comm.SendBytes(comm.rank() + 1, stop);
    return loaded;
  }

  // Rank 0.
  absl::Status Lead(Communicator& comm, const RankZero& rank_zero) const {
    Rank own;
    absl::Status status = Load(0, own);
    Report(0, status, own.ready);
    std::vector<pipeline::RankReady> all = {own.ready};
    for (int r = 1; r < comm.size(); ++r) {
      pipeline::RankReady& ready = all.emplace_back();
      absl::StatusOr<Bytes> bytes = comm.RecvBytes(r, kLoadTimeout, "its loaded stage");
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
      if (comm.size() > 1) comm.SendBytes(1, ToBytes(stop));
      return status;
    }
    Coordinator coordinator(*own.stage, comm);
    return rank_zero(coordinator, all);
  }

  // The device also measures how large layers are in its layout.
  absl::Status OpenRankDevice(int rank, Rank& out) const {
    ASSIGN_OR_RETURN(out.device, OpenDevice(DeviceOfRank(options_, rank),
                                            {.threads = ThreadsOfRank(options_, ranks_)}));
    return absl::OkStatus();
  }

 private:
  static void Report(int rank, const absl::Status& status, pipeline::RankReady& ready) {
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    ready.set_rank(rank);
    ready.set_host(host);
    ready.set_status_code(static_cast<int>(status.code()));
    ready.set_status_message(std::string(status.message()));
  }

  const LaunchOptions& options_;
  const OpenedModel& opened_;
  const PipelineSpec& spec_;
  const int ranks_;
  Progress& progress_;
};

}  // namespace

int ProcessRank() {
  const char* text = std::getenv("OMPI_COMM_WORLD_RANK");
  if (text == nullptr) text = std::getenv("PMIX_RANK");
  int rank = 0;
  return text != nullptr && absl::SimpleAtoi(text, &rank) ? rank : 0;
}

absl::Status RunPipeline(const LaunchOptions& options, const OpenedModel& opened, PipelineSpec spec,
                         bool show_progress, const RankZero& rank_zero) {
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  size_t total = 0;
  {
    ASSIGN_OR_RETURN(const auto device,
                     OpenDevice(DeviceOfRank(options, ProcessRank()), {.threads = 1}));
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

  if (StartedByMpi()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm, MakeMpiCommunicator());
    return comm->rank() == 0 ? launcher.Lead(*comm, rank_zero) : launcher.Serve(*comm);
  }
  std::vector<std::unique_ptr<Communicator>> comms = MakeLocalCommunicators(ranks);
  std::vector<std::thread> workers;
  for (int r = 1; r < ranks; ++r) {
    workers.emplace_back([&launcher, comm = std::move(comms[r])]() mutable {
      const absl::Status status = launcher.Serve(*comm);
      // Rank 0 hears of it: a load error by message, a later one by the closed mailbox.
      if (!status.ok()) LOG(ERROR) << "rank " << comm->rank() << ": " << status;
      comm.reset();
    });
  }
  const absl::Status status = launcher.Lead(*comms[0], rank_zero);
  comms[0].reset();
  for (std::thread& worker : workers) worker.join();
  return status;
}

}  // namespace keyline
