// Integer codes as f16, less the middle of their range: exact, and a few instructions for a
// register of them. A code in the low bits of an f16 of 1024 (0x6400), whose unit is 1, adds itself
// to it; four bits higher it does so to 64 (0x5400).
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/ops/cache_memory.h"

namespace keyline::cuda {

// What is subtracted from a code.
constexpr float CodeMiddle(KvFormat f) { return f == KvFormat::kInt8 ? 128.0f : 8.0f; }

// Two f16, each less `middle`.
__device__ inline uint32_t Less(uint32_t two, uint32_t middle) {
  const __half2 difference =
      __hsub2(*reinterpret_cast<const __half2*>(&two), *reinterpret_cast<const __half2*>(&middle));
  return *reinterpret_cast<const uint32_t*>(&difference);
}

// Bytes 0 and 2, and bytes 1 and 3, of four codes of 8 bits.
__device__ inline void SplitBytes(uint32_t codes, uint32_t& even, uint32_t& odd) {
  constexpr uint32_t kMiddle = 0x64806480;  // 1024 + 128
  even = Less((codes & 0x00ff00ff) | 0x64006400, kMiddle);
  odd = Less(__byte_perm(codes, 0x64646464, 0x4341), kMiddle);
}

// The same of the low and the high halves of four bytes of codes of 4 bits.
__device__ inline void SplitNibbles(uint32_t codes, uint32_t& low_even, uint32_t& low_odd,
                                    uint32_t& high_even, uint32_t& high_odd) {
  constexpr uint32_t kLowMiddle = 0x64086408;   // 1024 + 8
  constexpr uint32_t kHighMiddle = 0x54805480;  // 64 + 8
  const uint32_t odd = codes >> 8;
  low_even = Less((codes & 0x000f000f) | 0x64006400, kLowMiddle);
  low_odd = Less((odd & 0x000f000f) | 0x64006400, kLowMiddle);
  high_even = Less((codes & 0x00f000f0) | 0x54005400, kHighMiddle);
  high_odd = Less((odd & 0x00f000f0) | 0x54005400, kHighMiddle);
}

}  // namespace keyline::cuda
