// The RMS norm of one row, the same bits wherever it is taken: by itself or inside a product.
#pragma once

#include <cstdint>

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// Threads of every kernel that takes a norm: the order of summation depends on it.
constexpr int kNormThreads = 256;

// Consecutive elements of a row that one thread takes at a time, in loads of 16 bytes.
constexpr int kRun = 8;
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Run {
  T value[kCount];
};

// 1 / sqrt(mean(row^2) + eps), in every thread. REQUIRES: a block of kNormThreads, all of them
// here.
template <class T>
__device__ float InverseRms(const T* row, int64_t cols, float eps) {
  const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
  float squares = 0;
  for (int64_t i = int64_t{threadIdx.x} * kRun; i < cols; i += kNormThreads * kRun) {
    if (aligned && i + kRun <= cols) {
      const auto run = *reinterpret_cast<const Run<T, kRun>*>(row + i);
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        squares = fmaf(ToFloat(run.value[j]), ToFloat(run.value[j]), squares);
      }
    } else {
      for (int64_t j = i; j < cols && j < i + kRun; ++j) {
        squares = fmaf(ToFloat(row[j]), ToFloat(row[j]), squares);
      }
    }
  }
  squares = ReduceBlock(squares, Plus{}, 0.0f);
  return 1.0f / sqrtf(squares / static_cast<float>(cols) + eps);
}

template <class T>
__device__ T Normed(T x, float inverse_rms, float weight) {
  return FromFloat<T>(ToFloat(x) * inverse_rms * weight);
}

}  // namespace keyline::cuda
