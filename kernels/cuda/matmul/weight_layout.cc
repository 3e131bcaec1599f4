#include "kernels/cuda/matmul/weight_layout.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <glog/logging.h>

#include <algorithm>

#include "kernels/cuda/cuda_ops.h"

namespace keyline::cuda {
namespace {

template <class T, class Convert>
void Pack(const Weight& to, int64_t first, int64_t count, const float* source, Convert convert) {
  const int64_t padded = PaddedCols(to.cols);
  for (int64_t r = 0; r < count; ++r) {
    T* row = static_cast<T*>(to.data) + (first + r) * padded;
    const float* from = source + r * to.cols;
    for (int64_t c = 0; c < to.cols; ++c) row[c] = convert(from[c]);
    std::fill(row + to.cols, row + padded, convert(0.0f));
  }
}

}  // namespace

size_t PackedBytes(DType dtype, int64_t rows, int64_t cols) {
  CHECK(IsFloat(dtype)) << Name(dtype);
  return BytesOf(dtype, rows * PaddedCols(cols));
}

void PackRows(const Weight& to, int64_t first, int64_t count, const float* source) {
  switch (to.dtype) {
    case DType::kF32:
      return Pack<float>(to, first, count, source, [](float x) { return x; });
    case DType::kF16:
      return Pack<__half>(to, first, count, source, [](float x) { return __float2half_rn(x); });
    case DType::kBF16:
      return Pack<__nv_bfloat16>(to, first, count, source,
                                 [](float x) { return __float2bfloat16_rn(x); });
    default:
      LOG(FATAL) << "no CUDA weight is " << Name(to.dtype);
  }
}

}  // namespace keyline::cuda
