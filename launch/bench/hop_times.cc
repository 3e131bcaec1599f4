#include "launch/bench/hop_times.h"

#include <functional>

#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"

namespace keyline::bench {
namespace {

double Seconds(absl::Time since) { return absl::ToDoubleSeconds(absl::Now() - since); }

// Keeps the core, as a stage does.
void Compute(double seconds) {
  for (const absl::Time begin = absl::Now(); seconds > 0 && Seconds(begin) < seconds;) {
  }
}

absl::StatusOr<double> RoundTrips(int rank, int count, double pause,
                                  const std::function<void()>& send,
                                  const std::function<absl::Status()>& receive,
                                  const std::function<void()>& finish) {
  const absl::Time begin = absl::Now();
  for (int i = 0; i < count; ++i) {
    if (rank == 1) RETURN_IF_ERROR(receive());
    Compute(pause);
    send();
    if (rank == 0) RETURN_IF_ERROR(receive());
  }
  finish();
  return Seconds(begin) / (2 * count) - pause;
}

}  // namespace

absl::StatusOr<double> PingPong(Communicator& comm, Stream& stream, TensorView tensor, int count,
                                double pause) {
  const int peer = 1 - comm.rank();
  return RoundTrips(
      comm.rank(), count, pause, [&] { comm.Send(peer, tensor, stream); },
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

absl::StatusOr<double> BytesPingPong(Communicator& comm, size_t bytes, int count, double pause) {
  const int peer = 1 - comm.rank();
  const Bytes message(bytes);
  return RoundTrips(
      comm.rank(), count, pause, [&] { comm.SendBytes(peer, message); },
      [&] { return comm.RecvBytes(peer, kPeerPatience, "a message that comes back").status(); },
      [] {});
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
