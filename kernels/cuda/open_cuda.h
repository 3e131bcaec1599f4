// Opens one GPU as a device; OpenDevice("cuda:N") is the way in for those who compute. Needs no
// CUDA header, and links in builds without CUDA.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"

namespace keyline {

// UNAVAILABLE where this build has no CUDA or this machine no such GPU. The device has memory,
// streams, events and kernels. deterministic: as DeviceOptions says.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index, bool deterministic = false);

}  // namespace keyline
