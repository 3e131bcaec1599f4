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

__device__ inline float LogProb(float logit, double log_sum) {
  return isfinite(logit) ? static_cast<float>(static_cast<double>(logit) - log_sum) : -INFINITY;
}

// The sums of all threads of the warp, in every thread of it: one exponential each, after the
// maximum. No product is fused with a sum, so all threads get the same bits.
__device__ inline SoftmaxSums ReduceSums(const SoftmaxSums& x) {
  const float max = ReduceWarp(x.max, Maximum());
  const double part = x.finite == 0 ? 0 : __dmul_rn(x.sum, exp(static_cast<double>(x.max) - max));
  return {ReduceWarp(part, Plus()), max, ReduceWarp(x.finite, Plus())};
}

// Of all threads of the block, in every thread of it. `warps`: shared memory, one a warp, not used
// again by the caller.
__device__ inline SoftmaxSums ReduceBlockSums(SoftmaxSums x, SoftmaxSums* warps) {
  x = ReduceSums(x);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  return ReduceSums(lane < static_cast<int>(blockDim.x) / kWarp ? warps[lane]
                                                                : SoftmaxSums::None());
}

}  // namespace keyline::cuda
