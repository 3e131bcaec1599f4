// Communicator: point-to-point messages between the ranks of a pipeline, in two planes.
//
// Bytes: host data; SendBytes never waits for the peer. Tensors: device data in the order of a
// stream; they flow forward only (rank r to r + 1), which is why no implementation can deadlock.
// Between two ranks messages of one plane arrive in the order they were sent; the planes do not
// wait for each other. A rank may send to itself. One message has at most kMaxMessageBytes.
//
// Errors. A missed deadline is DEADLINE_EXCEEDED and nothing is lost: the call may be repeated.
// UNAVAILABLE where the peer is known to be gone, DATA_LOSS where what came is not what was sent:
// after these the step cannot be finished and the job should end.
// Thread: the rank's own thread only (MPI_THREAD_FUNNELED).
// To write a transport, read host_communicator.h next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "runtime/transport/rank_state.h"

namespace keyline {

using Bytes = std::vector<std::byte>;

// MPI counts in int, Protobuf's limit is the same.
constexpr size_t kMaxMessageBytes = (size_t{1} << 31) - 1;

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Where this rank is, for its own errors and for whoever looks from outside.
  virtual const std::shared_ptr<RankState>& state() = 0;

  // Never waits for the peer. The message is copied before the call returns.
  virtual void SendBytes(int peer, std::span<const std::byte> message) = 0;
  // The next message from `peer`. `awaited` says in an error what the caller was waiting for, as in
  // "rank 2: rank 1 did not send the plan of step 7 within 5s".
  virtual absl::StatusOr<Bytes> RecvBytes(int peer, absl::Duration timeout,
                                          std::string_view awaited) = 0;
  // True if RecvBytes(peer) would return at once, with a message or UNAVAILABLE.
  virtual bool HasBytes(int peer) = 0;

  // Whether Recv enqueues the transfer and returns, where it waits for the message otherwise.
  virtual bool EnqueuesTensors() const { return false; }
  // A contiguous tensor, in the order of `stream`; may be written again by later work of `stream`.
  virtual void Send(int peer, TensorView tensor, Stream& stream) = 0;
  // Into a contiguous tensor of the sender's size, for later work of `stream`. Where transfers are
  // enqueued (NCCL) it returns before this one has run: its deadline is that of whoever waits for
  // the stream.
  virtual absl::Status Recv(int peer, TensorView tensor, Stream& stream,
                            absl::Duration timeout) = 0;

  // Between layers: lets a transport without a thread of its own move on.
  virtual void Progress() {}
  // For Stream::WhileWaiting. Null: this rank is the only one, so whoever waits may sleep.
  std::function<void()> ProgressWhileWaiting() {
    if (size() == 1) return nullptr;
    return [this] { Progress(); };
  }
};

// `size` communicators in this process, one for each thread that plays a rank. Destroying one tells
// its peers: what it sent before stays readable, then they get UNAVAILABLE.
std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(int size);

// The ranks of MPI_COMM_WORLD. Initialises MPI; the destructor waits a bounded time for what was
// sent and finalises MPI, so a process can have one such communicator in its life.
// `epoch` counts restarts of the job: messages of another epoch are refused.
// UNAVAILABLE in a build without MPI or where MPI cannot be used from one thread.
absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(uint64_t epoch = 0);

// True where this process was started by mpirun (or srun with PMIx), by its environment alone.
bool StartedByMpi();

// Sends tensors by NCCL on the stream; bytes and the unique id go through `control`, which it takes
// over if it succeeds. All ranks call it together, each with its own CUDA device, from the thread
// that will use it. UNAVAILABLE in a build without NCCL and where libnccl is not to be found;
// INVALID_ARGUMENT for a device that is not CUDA; otherwise all ranks agree on the outcome.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator>& control, Device& device);

// What NCCL reads from the environment and the caller has not set: no NVLink multicast, which a
// pipeline has no use for, and kernels loaded in advance. `host` not empty: the name of the host
// that NCCL is to see, since it refuses two ranks on one GPU unless it takes them for two hosts;
// they meet over loopback then. Call it before NCCL is used and while no other thread reads the
// environment.
void SetNcclEnvironment(const std::string& host);

}  // namespace keyline
