#include "launch/rank_join.h"

#include <glog/logging.h>
#include <unistd.h>

#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/device/status_macros.h"
#include "launch/tensor_path.h"

namespace keyline {
namespace {

// Opening a device that others use takes a while.
constexpr absl::Duration kMeetTimeout = absl::Minutes(5);

// Where all ranks are: each tells rank 0, which tells all.
absl::StatusOr<std::vector<RankPlace>> Meet(Communicator& comm, const RankPlace& own) {
  std::string lines = absl::StrCat(own.host, " ", own.device);
  const auto send = [&](int peer) {
    comm.SendBytes(peer, std::as_bytes(std::span(lines.data(), lines.size())));
  };
  const auto receive = [&](int peer) -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(const Bytes bytes, comm.RecvBytes(peer, kMeetTimeout, "where it runs"));
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  if (comm.rank() == 0) {
    for (int r = 1; r < comm.size(); ++r) {
      ASSIGN_OR_RETURN(const std::string line, receive(r));
      absl::StrAppend(&lines, "\n", line);
    }
    for (int r = 1; r < comm.size(); ++r) send(r);
  } else {
    send(0);
    ASSIGN_OR_RETURN(lines, receive(0));
  }
  std::vector<RankPlace> places;
  for (const auto& line : absl::StrSplit(lines, '\n')) {
    const std::pair<std::string, std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    places.push_back({words.first, words.second});
  }
  if (static_cast<int>(places.size()) != comm.size()) {
    return absl::DataLossError(
        absl::StrCat("rank 0 told where ", places.size(), " of ", comm.size(), " ranks run"));
  }
  return places;
}

}  // namespace

absl::StatusOr<std::string> JoinRanks(const LaunchOptions& options, int ranks,
                                      std::unique_ptr<Communicator>& comm,
                                      std::unique_ptr<Device>& device) {
  const int rank = comm->rank();
  const std::string host = StartedByMpi() ? "mpi" : "local";
  const std::string name = DeviceOfRank(options, rank);
  absl::StatusOr<std::unique_ptr<Device>> opened = OpenDevice(
      name, {.threads = ThreadsOfRank(options, ranks), .deterministic = options.deterministic});
  const absl::Status status = opened.status();
  if (status.ok()) device = *std::move(opened);
  if (comm->size() == 1 && status.ok()) {
    RETURN_IF_ERROR(ChooseTensorPath(options.transport, true, {{HostName(), name}}, 0).status());
    return host;
  }
  ASSIGN_OR_RETURN(const std::vector<RankPlace> places,
                   Meet(*comm, {HostName(), status.ok() ? name : ""}));
  RETURN_IF_ERROR(status);
  for (const RankPlace& place : places) {
    if (place.device.empty()) return host;
  }
  ASSIGN_OR_RETURN(const TensorPath path,
                   ChooseTensorPath(options.transport, !StartedByMpi(), places, rank));
  if (!path.nccl) return host;
  if (StartedByMpi()) SetNcclEnvironment(path.nccl_host);
  absl::StatusOr<std::unique_ptr<Communicator>> nccl = MakeNcclCommunicator(comm, *device);
  if (nccl.ok()) {
    comm = *std::move(nccl);
    return "nccl";
  }
  if (options.transport == "auto" && absl::IsUnavailable(nccl.status())) {
    LOG_IF(WARNING, rank == 0) << "tensors go through host memory, which is slower: "
                               << nccl.status().message();
    return host;
  }
  return nccl.status();
}

std::string HostName() {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return host;
}

}  // namespace keyline
