// In builds without NCCL.
#include "runtime/transport/communicator.h"

namespace keyline {

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator>& /*control*/, Device& /*device*/) {
  return absl::UnavailableError(
      "this build has no NCCL: configure with -DWITH_CUDA=ON -DWITH_NCCL=ON, or let tensors travel "
      "through host memory");
}

void SetNcclEnvironment(const std::string& /*host*/) {}

}  // namespace keyline
