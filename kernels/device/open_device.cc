// Names every backend, so it is linked above them (keyline_open_device), not with keyline_device.
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cpu/open_cpu.h"
#include "kernels/cuda/open_cuda.h"
#include "kernels/device/device.h"

namespace keyline {

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name,
                                                   const DeviceOptions& options) {
  if (name == "cpu") {
    const char* isa = std::getenv("KEYLINE_CPU_ISA");
    return OpenCpuDevice(options.threads, isa == nullptr ? "" : isa);
  }
  absl::string_view number(name.data(), name.size());
  int index = 0;
  if (absl::ConsumePrefix(&number, "cuda:") && absl::SimpleAtoi(number, &index) && index >= 0) {
    return OpenCudaDevice(index, options.deterministic);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", std::string(name), "\": known are cpu and cuda:N, N from 0"));
}

}  // namespace keyline
