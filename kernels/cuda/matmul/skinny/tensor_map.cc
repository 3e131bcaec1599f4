#include "kernels/cuda/matmul/skinny/tensor_map.h"

#include <cuda_runtime.h>

#include <array>

#include "kernels/cuda/cuda_check.h"

namespace keyline::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  constexpr unsigned kSince = 12000;  // the CUDA version that has it as it is called here
  CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince,
                                              cudaEnableDefault, &found));
  CHECK_EQ(found, cudaDriverEntryPointSuccess) << "the driver has no cuTensorMapEncodeTiled";
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap MakeTensorMap(const void* data, std::initializer_list<TensorDimension> dimensions) {
  static const Encode encode = FindEncode();
  constexpr size_t kMost = 5;
  CHECK_LE(dimensions.size(), kMost);
  std::array<cuuint64_t, kMost> sizes{}, strides{};
  std::array<cuuint32_t, kMost> boxes{}, steps{};
  size_t count = 0;
  for (const TensorDimension& d : dimensions) {
    sizes[count] = d.size;
    if (count > 0) strides[count - 1] = d.stride;  // the first one's follows from the type
    boxes[count] = d.box;
    steps[count] = 1;
    ++count;
  }
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, static_cast<cuuint32_t>(count),
             const_cast<void*>(data), sizes.data(), strides.data(), boxes.data(), steps.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK_EQ(result, CUDA_SUCCESS) << "tensor map of " << count << " dimensions at " << data;
  return map;
}

}  // namespace keyline::cuda
