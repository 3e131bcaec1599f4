// Opens one GPU as a device; OpenDevice("cuda:N") is the way in.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"

namespace keyline {

// UNAVAILABLE where this build has no CUDA or this machine no such GPU.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index);

}  // namespace keyline
