// Communicator: point-to-point messages between the ranks of a pipeline, in two planes.
//
// Bytes: host data; SendBytes never waits for the peer. Tensors: device data in the order of a
// stream; they flow forward only (rank r to r + 1), which is why no implementation can deadlock.
// Between two ranks messages of one plane arrive in the order they were sent.
// Thread: the rank's own thread only (MPI_THREAD_FUNNELED).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace keyline {

using Bytes = std::vector<std::byte>;

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Never waits for the peer. The message is copied before the call returns.
  virtual void SendBytes(int peer, std::span<const std::byte> message) = 0;
  // The next message from `peer`. DEADLINE_EXCEEDED names the peer and `awaited` (what the caller
  // was waiting for); UNAVAILABLE where the peer is known to be gone.
  virtual absl::StatusOr<Bytes> RecvBytes(int peer, absl::Duration timeout,
                                          std::string_view awaited) = 0;
  // True if RecvBytes(peer) would return at once.
  virtual bool HasBytes(int peer) = 0;

  // A contiguous tensor, in the order of `stream`. The receiver's has the same shape and type.
  // Default: through host memory, by bytes.
  virtual void Send(int peer, TensorView tensor, Stream& stream);
  virtual absl::Status Recv(int peer, TensorView tensor, Stream& stream, absl::Duration timeout);

  // Between layers: lets a transport without a thread of its own move on.
  virtual void Progress() {}
};

// `size` communicators in this process, one for each thread that plays a rank.
std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(int size);

// The ranks of MPI_COMM_WORLD. Initialises MPI on first use; finalises it when the communicator is
// destroyed. UNAVAILABLE in a build without MPI.
absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator();

// True where this process was started by mpirun (or srun with PMIx), by its environment alone.
bool StartedByMpi();

// Sends tensors by NCCL on the stream; bytes and the unique id go through `control`. UNAVAILABLE in
// a build without NCCL.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> control, Device& device);

}  // namespace keyline
