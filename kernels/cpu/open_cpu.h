// Opens the CPU as a device; OpenDevice("cpu") is the way in for all but tests.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"

namespace keyline {

// threads 0: one for each core. `isa`: "" for the best instruction set that this machine has, or
// one of "avx512_bf16", "avx512", "avx2", "scalar" (OpenDevice takes it from KEYLINE_CPU_ISA);
// INVALID_ARGUMENT lists what this machine has.
absl::StatusOr<std::unique_ptr<Device>> OpenCpuDevice(int threads, std::string_view isa);

}  // namespace keyline
