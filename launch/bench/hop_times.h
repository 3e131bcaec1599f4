// How long messages take between ranks 0 and 1, which call the same functions at the same time.
// Errors are the communicator's, and RESOURCE_EXHAUSTED where a device has no room.
#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "launch/bench/pipeline_simulation.h"
#include "runtime/transport/communicator.h"

namespace keyline::bench {

// Patience with a peer that has something to load or to measure first.
constexpr absl::Duration kPeerPatience = absl::Minutes(10);

// Seconds of computing between messages, longer than any receiver spins before it sleeps, as it
// does in a pipeline.
constexpr double kPause = 200e-6;

// Computing that takes a known time: a device has it to do while its host goes on, a CPU has done
// it when Enqueue returns.
class DeviceWork {
 public:
  // About `seconds` of it, at least a copy's.
  static absl::StatusOr<DeviceWork> Make(Stream& stream, double seconds);
  void Enqueue() const;
  double seconds() const { return seconds_; }  // until it is done, as measured

 private:
  explicit DeviceWork(Stream& stream) : stream_(&stream) {}

  Stream* stream_;
  double seconds_ = 0;
  Tensor from_, to_;  // what a device copies, `copies_` times
  int copies_ = 0;
};

// Seconds of one way, out of `count` round trips. `before`: what each rank does before it sends,
// which counts.
absl::StatusOr<double> PingPong(Communicator& comm, Stream& stream, TensorView tensor, int count,
                                const DeviceWork* before = nullptr);
// Seconds of a message, out of `count` in a row, until rank 1 has the last.
absl::StatusOr<double> OneWay(Communicator& comm, Stream& stream, TensorView tensor, int count);
// The parts of a message behind a stage's work, medians of `rounds` times `count`: what a host can
// prepare while its device works does not count. On rank 1 not all of them are there. REQUIRES:
// count >= 2.
absl::StatusOr<HopTime> MeasureHop(Communicator& comm, Stream& stream, TensorView tensor, int count,
                                   int rounds);
// As PingPong, of `bytes` bytes of host data, behind `pause` seconds of the host, which do not
// count.
absl::StatusOr<double> BytesPingPong(Communicator& comm, size_t bytes, int count, double pause);

// Returns when all ranks have called it.
absl::Status Meet(Communicator& comm);

}  // namespace keyline::bench
