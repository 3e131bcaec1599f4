// Sums and extremes over a warp or a block, in a fixed order: the same bits at every run.
#pragma once

#include <cstdint>

namespace keyline::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Maximum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Minimum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// The result is in every thread of the warp.
template <class T, class Combine>
__device__ inline T ReduceWarp(T x, Combine combine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

// The result is in every thread of the block. All threads call it; blockDim.x is a multiple of 32.
// `empty` is what a missing warp counts as.
template <class T, class Combine>
__device__ inline T ReduceBlock(T x, Combine combine, T empty) {
  __shared__ T warps[32];
  __syncthreads();  // of an earlier call
  x = ReduceWarp(x, combine);
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = lane < static_cast<int>(blockDim.x) / kWarp ? warps[lane] : empty;
  return ReduceWarp(x, combine);
}

}  // namespace keyline::cuda
