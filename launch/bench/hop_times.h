// How long messages take between ranks 0 and 1, which call the same functions at the same time.
// Errors are the communicator's.
#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "runtime/transport/communicator.h"

namespace keyline::bench {

// Patience with a peer that has something to load or to measure first.
constexpr absl::Duration kPeerPatience = absl::Minutes(10);

// Seconds of one way, out of `count` round trips. `pause`: seconds of computing before each
// message, which do not count, so that the receiver has gone to sleep as it does in a pipeline.
absl::StatusOr<double> PingPong(Communicator& comm, Stream& stream, TensorView tensor, int count,
                                double pause = 0);
// Seconds of a message, out of `count` in a row, until rank 1 has the last.
absl::StatusOr<double> OneWay(Communicator& comm, Stream& stream, TensorView tensor, int count);
// As PingPong, of `bytes` bytes of host data.
absl::StatusOr<double> BytesPingPong(Communicator& comm, size_t bytes, int count, double pause);

// Returns when all ranks have called it.
absl::Status Meet(Communicator& comm);

}  // namespace keyline::bench
