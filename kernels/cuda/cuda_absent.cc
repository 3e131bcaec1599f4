// In builds without CUDA.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/open_cuda.h"

namespace keyline {

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index, bool /*deterministic*/) {
  return absl::UnavailableError(absl::StrCat(
      "cuda:", index, ": this build has no CUDA; configure with -DWITH_CUDA=ON, or use cpu"));
}

}  // namespace keyline
