// What the softmax of a row of logits needs besides the row, in one pass over it. Logits that are
// NaN or infinite have no part in it: they count as probability zero.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// sum: of exp(logit - max) over what was added; max is minus infinity where that is nothing.
struct SoftmaxSums {
  double sum;
  float max;
  int32_t finite;

  __device__ static SoftmaxSums None() { return {0, -INFINITY, 0}; }

  __device__ void Add(float logit) {
    if (!isfinite(logit)) return;
    ++finite;
    if (logit <= max) {
      sum += expf(logit - max);
    } else {
      sum = sum * expf(max - logit) + 1;  // the first time 0 * 0 + 1
      max = logit;
    }
  }

  // REQUIRES: a finite logit.
  __device__ double LogSum() const { return static_cast<double>(max) + log(sum); }
};

// No product is fused with the sum: the same bits whichever comes first.
__device__ inline SoftmaxSums Merge(const SoftmaxSums& a, const SoftmaxSums& b) {
  if (a.finite == 0) return b;
  if (b.finite == 0) return a;
  const float max = a.max > b.max ? a.max : b.max;
  const double a_part = __dmul_rn(a.sum, exp(static_cast<double>(a.max) - max));
  const double b_part = __dmul_rn(b.sum, exp(static_cast<double>(b.max) - max));
  return {__dadd_rn(a_part, b_part), max, a.finite + b.finite};
}

__device__ inline float LogProb(float logit, double log_sum) {
  return isfinite(logit) ? static_cast<float>(static_cast<double>(logit) - log_sum) : -INFINITY;
}

// The sums of all threads of the warp, in every thread of it.
__device__ inline SoftmaxSums ReduceSums(SoftmaxSums x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    SoftmaxSums other;
    other.max = __shfl_xor_sync(kAllLanes, x.max, offset);
    other.finite = __shfl_xor_sync(kAllLanes, x.finite, offset);
    other.sum = __shfl_xor_sync(kAllLanes, x.sum, offset);
    x = Merge(x, other);
  }
  return x;
}

// Of all threads of the block, in every thread of it. `warps`: shared memory, one a warp, not used
// again by the caller.
__device__ inline SoftmaxSums ReduceBlockSums(SoftmaxSums x, SoftmaxSums* warps) {
  x = ReduceSums(x);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  SoftmaxSums all = warps[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) all = Merge(all, warps[w]);
  return all;
}

}  // namespace keyline::cuda
