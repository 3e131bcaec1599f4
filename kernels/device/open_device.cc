// Names every backend, so it is linked above them (keyline_open_device), not with keyline_device.
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cpu/open_cpu.h"
#include "kernels/cuda/open_cuda.h"
#include "kernels/device/device.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/op_table.h"

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
    ASSIGN_OR_RETURN(std::unique_ptr<Device> device, OpenCudaDevice(index));
    if (device->ops().matmul == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat(device->name(),
                       ": this build moves data on CUDA devices but has no kernels for them yet; "
                       "use cpu"));
    }
    return device;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", std::string(name), "\": known are cpu and cuda:N, N from 0"));
}

}  // namespace keyline
