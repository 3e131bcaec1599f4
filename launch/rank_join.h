// How a rank joins the others: it opens its device, and all agree on the way of their tensors.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "launch/wiring.h"
#include "runtime/transport/communicator.h"

namespace keyline {

// Opens the rank's device and, where tensors are to go by NCCL (launch/tensor_path.h), puts NCCL
// over `comm`. Called by all ranks. On another rank's failure it is OK without NCCL: the launch
// goes on, and rank 0 ends it once it has heard from all. The way: "local" or "mpi", both through
// host memory, or "nccl".
absl::StatusOr<std::string> JoinRanks(const LaunchOptions& options, int ranks,
                                      std::unique_ptr<Communicator>& comm,
                                      std::unique_ptr<Device>& device);

std::string HostName();

}  // namespace keyline
