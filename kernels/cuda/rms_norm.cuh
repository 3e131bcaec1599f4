// The RMS norm of one row, the same bits wherever it is taken: by itself or inside a product.
#pragma once

#include <cstdint>

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// Threads of every kernel that takes a norm: the order of summation depends on it.
constexpr int kNormThreads = 256;

// 1 / sqrt(mean(row^2) + eps), in every thread. REQUIRES: a block of kNormThreads, all of them
// here.
template <class T>
__device__ float InverseRms(const T* row, int64_t cols, float eps) {
  float squares = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kNormThreads) {
    const float x = ToFloat(row[i]);
    squares += x * x;
  }
  return rsqrtf(ReduceBlock(squares, Plus{}, 0.0f) / static_cast<float>(cols) + eps);
}

template <class T>
__device__ T Normed(T x, float inverse_rms, float weight) {
  return FromFloat<T>(ToFloat(x) * inverse_rms * weight);
}

}  // namespace keyline::cuda
