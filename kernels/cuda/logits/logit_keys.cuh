// Keys for kernels/cuda/select.cuh that rank logits: the largest is the lowest key, and among
// equals the lowest token id.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/select.cuh"

namespace keyline::cuda {

__device__ inline uint64_t LogitKey(float logit, int64_t token) {
  return static_cast<uint64_t>(~Orderable(logit)) << 32 | static_cast<uint64_t>(token);
}
__device__ inline float LogitOf(uint64_t key) {
  return FromOrderable(~static_cast<uint32_t>(key >> 32));
}
__device__ inline int32_t TokenOf(uint64_t key) {
  return static_cast<int32_t>(static_cast<uint32_t>(key));
}

// Bits of the largest token id.
__device__ inline int TokenBits(int64_t vocabulary) { return 64 - __clzll(vocabulary); }

}  // namespace keyline::cuda
