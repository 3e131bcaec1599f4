// Opens one GPU as a device; OpenDevice("cuda:N") is the way in for those who compute. Needs no
// CUDA header, and links in builds without CUDA.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"

namespace keyline {

// UNAVAILABLE where this build has no CUDA or this machine no such GPU. The device has memory,
// streams and events; it has no kernels yet: all entries of its op table are null, so OpenDevice
// refuses it.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index);

}  // namespace keyline
