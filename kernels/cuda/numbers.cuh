// Number formats in kernels: every kernel computes in float and converts where it loads and stores.
//
// Float is T for f32, f16 and bf16 activations and weights. Dispatch turns a DType into such a T.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <glog/logging.h>

#include <cstdint>

#include "kernels/device/dtype.h"

namespace keyline::cuda {

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__half x) { return __half2float(x); }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline __half FromFloat<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// 16 bytes: what one thread loads or stores at a time.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T value[kSize];
};

// Calls body(T{}) with the T of a float type.
template <class Body>
void DispatchFloat(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kF16:
      return body(__half{});
    case DType::kBF16:
      return body(__nv_bfloat16{});
    default:
      LOG(FATAL) << "no CUDA kernel computes in " << Name(dtype);
  }
}

}  // namespace keyline::cuda
