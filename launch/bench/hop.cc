// bench hop: a hidden state from rank 0 to rank 1, back and forth and as a one-way stream.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "launch/bench/hop_times.h"
#include "launch/rank_join.h"
#include "launch/ranks.h"
#include "runtime/transport/communicator.h"

namespace keyline::bench {
namespace {

constexpr int64_t kSizes[] = {int64_t{8} << 10, int64_t{256} << 10, int64_t{4} << 20,
                              int64_t{16} << 20};
constexpr int64_t kBytesOfRound = int64_t{64} << 20;  // moved, at most

int MessagesOfRound(int64_t bytes) {
  return static_cast<int>(std::clamp<int64_t>(kBytesOfRound / bytes, 2, 100));
}

// One of the two ranks.
class Peer {
 public:
  static absl::StatusOr<Peer> Open(const Run& run, std::unique_ptr<Communicator> comm) {
    Peer peer;
    ASSIGN_OR_RETURN(peer.transport_, JoinRanks(run.options, 2, comm, peer.device_));
    peer.comm_ = std::move(comm);
    peer.stream_ = peer.device_->NewStream();
    ASSIGN_OR_RETURN(peer.state_, RandomTensor(*peer.device_, *peer.stream_, DType::kF32, 1,
                                               kSizes[std::size(kSizes) - 1] / 4, 1));
    return peer;
  }

  int rank() const { return comm_->rank(); }
  Device& device() { return *device_; }
  const std::string& transport() const { return transport_; }

  absl::StatusOr<double> PingPong(int64_t bytes, int count) {
    return bench::PingPong(*comm_, *stream_, Part(bytes), count);
  }
  absl::StatusOr<double> OneWay(int64_t bytes, int count) {
    return bench::OneWay(*comm_, *stream_, Part(bytes), count);
  }

 private:
  TensorView Part(int64_t bytes) const { return state_.view().Columns(0, bytes / 4); }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> comm_;
  std::string transport_;
  std::unique_ptr<Stream> stream_;
  Tensor state_;
};

struct Figures {
  int64_t bytes;
  double one_way;  // seconds
  double streamed;
};

absl::StatusOr<std::vector<Figures>> Exchange(Peer& peer, int repeat) {
  std::vector<Figures> all;
  for (int64_t bytes : kSizes) {
    const int count = MessagesOfRound(bytes);
    RETURN_IF_ERROR(peer.PingPong(bytes, 2).status());  // connects, grows buffers
    std::vector<double> one_way, streamed;
    for (int round = 0; round < repeat; ++round) {
      ASSIGN_OR_RETURN(one_way.emplace_back(), peer.PingPong(bytes, count));
      ASSIGN_OR_RETURN(streamed.emplace_back(), peer.OneWay(bytes, count));
    }
    all.push_back({bytes, Median(one_way), Median(streamed)});
  }
  return all;
}

absl::Status AddRows(const Run& run, Device& device, const std::vector<Figures>& all) {
  // Through host memory a hop is at best one copy, which reads and writes; between GPUs nothing
  // here knows the link, so the best that it did in this run stands for it.
  double limit = 0;
  std::string limit_by = "the fastest stream of this run";
  for (const Figures& f : all) limit = std::max(limit, static_cast<double>(f.bytes) / f.streamed);
  if (device.memory_is_host()) {
    ASSIGN_OR_RETURN(const auto probe, DeviceProbe::Make(device));
    limit = probe->ReadBandwidth() / 2;
    limit_by = absl::StrCat("copying, half of reading at ", Rate(2 * limit, "B"));
  }
  for (const Figures& f : all) {
    const auto row = [&](const char* what, double seconds) {
      run.report.Add({.name = absl::StrCat(what, " ", f.bytes >> 10, " KiB"),
                      .value = static_cast<double>(f.bytes) / seconds * 1e-9,
                      .unit = "GB/s",
                      .limit = limit * 1e-9,
                      .limit_by = limit_by,
                      .more = {{"bytes", f.bytes}, {"us", seconds * 1e6}}});
    };
    row("ping-pong", f.one_way);
    row("stream", f.streamed);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Hop(const Run& run) {
  LaunchOptions options = run.options;
  if (options.ranks == 0 && !StartedByMpi()) options.ranks = 2;
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  if (ranks != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ranks: bench hop is between 2 ranks, not ", ranks));
  }
  return PlayRanks(options, ranks, [&](std::unique_ptr<Communicator> comm) -> absl::Status {
    ASSIGN_OR_RETURN(Peer peer, Peer::Open(run, std::move(comm)));
    ASSIGN_OR_RETURN(const std::vector<Figures> all, Exchange(peer, run.args.repeat));
    if (peer.rank() != 0) return absl::OkStatus();
    run.report.Set("device", peer.device().description());
    run.report.Set("transport", peer.transport());
    run.report.Set("ranks", ranks);
    return AddRows(run, peer.device(), all);
  });
}

}  // namespace keyline::bench
