// HostCommunicator: what transports through host memory share. It stages tensors, so that a
// transport only moves bytes, in two planes that keep their order apart from each other.
//
// Base of local_communicator.cc and mpi_communicator.cc; callers see communicator.h alone.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/transport/communicator.h"

namespace keyline {

class HostCommunicator : public Communicator {
 public:
  explicit HostCommunicator(std::shared_ptr<RankState> state) : state_(std::move(state)) {}
  const std::shared_ptr<RankState>& state() override { return state_; }
  void Send(int peer, TensorView tensor, Stream& stream) override;
  absl::Status Recv(int peer, TensorView tensor, Stream& stream, absl::Duration timeout) override;

 protected:
  // Takes over `message`; never waits for the peer.
  virtual void SendTensorBytes(int peer, Bytes message) = 0;
  // Fills `into`. DATA_LOSS where the message has another size.
  virtual absl::Status RecvTensorBytes(int peer, std::span<std::byte> into, absl::Duration timeout,
                                       std::string_view awaited) = 0;

  // The words of every transport's errors.
  absl::Status NothingCame(int peer, std::string_view awaited, absl::Duration timeout) const;
  absl::Status PeerEnded(int peer, std::string_view awaited) const;
  absl::Status WrongSize(int peer, std::string_view awaited, size_t sent, size_t expected) const;

 private:
  const std::shared_ptr<RankState> state_;
};

}  // namespace keyline
