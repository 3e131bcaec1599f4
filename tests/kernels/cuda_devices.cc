// CUDA with each type of activations.
#include "tests/kernels/device_under_test.h"

namespace keyline {

std::vector<DeviceUnderTest> CudasUnderTest() {
  return {{"cuda_f32", "", DType::kF32, true},
          {"cuda_bf16", "", DType::kBF16, true},
          {"cuda_f16", "", DType::kF16, true}};
}

}  // namespace keyline
