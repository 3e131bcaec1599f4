#include "launch/bench/hop_times.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"

namespace keyline::bench {
namespace {

double Seconds(absl::Time since) { return absl::ToDoubleSeconds(absl::Now() - since); }

// Keeps the core, as a stage does.
void Compute(double seconds) {
  for (const absl::Time begin = absl::Now(); seconds > 0 && Seconds(begin) < seconds;) {
  }
}

double TimeOf(const std::function<void()>& work) {
  const absl::Time begin = absl::Now();
  work();
  return Seconds(begin);
}

// What each tells the other.
template <size_t kCount>
absl::StatusOr<std::array<double, kCount>> Swap(Communicator& comm,
                                                const std::array<double, kCount>& mine) {
  const int peer = 1 - comm.rank();
  comm.SendBytes(peer, std::as_bytes(std::span(mine)));
  ASSIGN_OR_RETURN(const Bytes bytes, comm.RecvBytes(peer, kPeerPatience, "what it has measured"));
  std::array<double, kCount> theirs;
  if (bytes.size() != sizeof(theirs)) {
    return absl::InternalError(absl::StrCat("rank ", peer, " sent ", bytes.size(), " bytes where ",
                                            sizeof(theirs), " were due"));
  }
  std::memcpy(theirs.data(), bytes.data(), sizeof(theirs));
  return theirs;
}

absl::StatusOr<double> RoundTrips(int rank, int count, const std::function<void()>& send,
                                  const std::function<absl::Status()>& receive,
                                  const std::function<void()>& finish) {
  const absl::Time begin = absl::Now();
  for (int i = 0; i < count; ++i) {
    if (rank == 1) RETURN_IF_ERROR(receive());
    send();
    if (rank == 0) RETURN_IF_ERROR(receive());
  }
  finish();
  return Seconds(begin) / (2 * count);
}

// What each rank is occupied for: the sender behind its work, the receiver where the message is
// there already, with and without work before it on its device.
absl::Status MeasureEnds(Communicator& comm, Stream& stream, TensorView tensor,
                         const DeviceWork& work, int count, HopTime& hop) {
  const int peer = 1 - comm.rank();
  std::vector<double> alone, behind, idle;
  absl::Status received;
  const auto receive = [&] { received = comm.Recv(peer, tensor, stream, kPeerPatience); };
  for (int i = 0; i < count; ++i) {
    alone.push_back(TimeOf([&] {
      work.Enqueue();
      stream.Synchronize();
    }));
    if (comm.rank() == 0) {
      behind.push_back(TimeOf([&] {
        work.Enqueue();
        comm.Send(peer, tensor, stream);
      }));
      comm.SendBytes(peer, {});
      RETURN_IF_ERROR(comm.RecvBytes(peer, kPeerPatience, "that it has the message").status());
      continue;
    }
    RETURN_IF_ERROR(comm.RecvBytes(peer, kPeerPatience, "that a message waits").status());
    if (i % 2 == 0) {
      idle.push_back(TimeOf(receive));
    } else {
      behind.push_back(TimeOf([&] {
        work.Enqueue();
        receive();
      }));
    }
    RETURN_IF_ERROR(received);
    comm.SendBytes(peer, {});
  }
  // Nothing takes less than no time, whatever the noise.
  const double more = std::max(Median(behind) - Median(alone), 0.0);
  ASSIGN_OR_RETURN(const auto theirs, Swap<2>(comm, {idle.empty() ? 0 : Median(idle), more}));
  if (comm.rank() > 0) return absl::OkStatus();
  hop.send = more;
  hop.receive = theirs[0];
  hop.receive_device = std::min(theirs[1], hop.receive);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DeviceWork> DeviceWork::Make(Stream& stream, double seconds) {
  DeviceWork work(stream);
  Device& device = stream.device();
  const auto take = [&] {
    std::vector<double> times(5);
    for (double& time : times) {
      time = TimeOf([&] {
        work.Enqueue();
        stream.Synchronize();
      });
    }
    work.seconds_ = Median(times);
  };
  if (device.memory_is_host()) {
    work.seconds_ = seconds;
    return work;
  }
  constexpr int64_t kCopied = int64_t{32} << 20;
  ASSIGN_OR_RETURN(work.from_, Tensor::Allocate(device, DType::kF32, {1, kCopied / 4}));
  ASSIGN_OR_RETURN(work.to_, Tensor::Allocate(device, DType::kF32, {1, kCopied / 4}));
  constexpr int kSome = 16;  // enough that launching the first one weighs little
  work.copies_ = kSome;
  take();
  work.copies_ = std::max(1, static_cast<int>(std::ceil(seconds / work.seconds_ * kSome)));
  take();
  return work;
}

void DeviceWork::Enqueue() const {
  if (copies_ == 0) Compute(seconds_);
  for (int i = 0; i < copies_; ++i) {
    stream_->CopyAsync(to_.view().data, from_.view().data, from_.view().bytes());
  }
}

absl::StatusOr<double> PingPong(Communicator& comm, Stream& stream, TensorView tensor, int count,
                                const DeviceWork* before) {
  const int peer = 1 - comm.rank();
  return RoundTrips(
      comm.rank(), count,
      [&] {
        if (before != nullptr) before->Enqueue();
        comm.Send(peer, tensor, stream);
      },
      [&] { return comm.Recv(peer, tensor, stream, kPeerPatience); },
      [&] { stream.Synchronize(); });
}

absl::StatusOr<double> OneWay(Communicator& comm, Stream& stream, TensorView tensor, int count) {
  const absl::Time begin = absl::Now();
  for (int i = 0; i < count; ++i) {
    if (comm.rank() == 0) {
      comm.Send(1, tensor, stream);
    } else {
      RETURN_IF_ERROR(comm.Recv(0, tensor, stream, kPeerPatience));
    }
  }
  stream.Synchronize();
  if (comm.rank() == 0) {
    RETURN_IF_ERROR(comm.RecvBytes(1, kPeerPatience, "the end of a stream").status());
  } else {
    comm.SendBytes(0, {});
  }
  return Seconds(begin) / count;
}

absl::StatusOr<HopTime> MeasureHop(Communicator& comm, Stream& stream, TensorView tensor, int count,
                                   int rounds) {
  RETURN_IF_ERROR(PingPong(comm, stream, tensor, 2).status());  // connects, grows buffers
  ASSIGN_OR_RETURN(const double bare, PingPong(comm, stream, tensor, count));
  // A stage is long beside what a host prepares meanwhile, which is less than the whole message.
  const double pause = stream.device().memory_is_host() ? kPause : std::max(kPause, 2 * bare);
  ASSIGN_OR_RETURN(const DeviceWork work, DeviceWork::Make(stream, pause));
  ASSIGN_OR_RETURN(const auto theirs, Swap<1>(comm, {work.seconds()}));
  std::vector<double> one_way;
  for (int round = 0; round < rounds; ++round) {
    ASSIGN_OR_RETURN(one_way.emplace_back(), PingPong(comm, stream, tensor, count, &work));
  }
  HopTime hop{.one_way = Median(one_way) - (work.seconds() + theirs[0]) / 2,
              .together = comm.EnqueuesTensors()};
  if (!hop.together) {
    RETURN_IF_ERROR(MeasureEnds(comm, stream, tensor, work, count * rounds, hop));
  }
  hop.one_way = std::max(hop.one_way, hop.send);
  return hop;
}

absl::StatusOr<double> BytesPingPong(Communicator& comm, size_t bytes, int count, double pause) {
  const int peer = 1 - comm.rank();
  const Bytes message(bytes);
  ASSIGN_OR_RETURN(
      const double seconds,
      RoundTrips(
          comm.rank(), count,
          [&] {
            Compute(pause);
            comm.SendBytes(peer, message);
          },
          [&] { return comm.RecvBytes(peer, kPeerPatience, "a message that comes back").status(); },
          [] {}));
  return std::max(seconds - pause, 0.0);
}

absl::Status Meet(Communicator& comm) {
  const auto await = [&](int peer) {
    return comm.RecvBytes(peer, kPeerPatience, "that it has come as far").status();
  };
  if (comm.rank() > 0) {
    comm.SendBytes(0, {});
    return await(0);
  }
  for (int r = 1; r < comm.size(); ++r) RETURN_IF_ERROR(await(r));
  for (int r = 1; r < comm.size(); ++r) comm.SendBytes(r, {});
  return absl::OkStatus();
}

}  // namespace keyline::bench
