// Stores a head vector in a row of K or V, in its number format: a warp a vector. The codes, scales
// and zero points are those of kernels/cpu/cache/kv_layout.cc to the bit, so no operation here may
// be fused with another: all roundings are spelt out.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/cache/kv_layout.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// The scheme of cache_memory.h.
struct QuantBlock {
  float scale;
  float zero;

  __device__ uint8_t Code(float x, float levels) const {
    const float code = __fadd_rn(rintf(__fdiv_rn(x, scale)), zero);
    // A NaN fails both comparisons and becomes 0.
    return code >= levels ? static_cast<uint8_t>(levels)
           : code > 0     ? static_cast<uint8_t>(code)
                          : 0;
  }
  __device__ double Lost(float x, uint8_t code) const {
    const float back = __fmul_rn(__fsub_rn(static_cast<float>(code), zero), scale);
    const double difference = static_cast<double>(x) - back;
    return difference * difference;
  }
};

// x: the block's [n]. Every thread of the warp gets the result.
__device__ inline QuantBlock MakeQuantBlock(const float* x, int n, float levels) {
  float low = INFINITY;
  float high = -INFINITY;
  for (int i = threadIdx.x % kWarp; i < n; i += kWarp) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  low = ReduceWarp(low, Minimum());
  high = ReduceWarp(high, Maximum());
  QuantBlock block;
  block.scale = __fdiv_rn(__fsub_rn(high, low), levels);
  block.scale = block.scale < 0x1p-23f ? 0x1p-23f : block.scale;
  block.zero = -rintf(__fdiv_rn(low, block.scale));
  return block;
}

// The Encode functions return this thread's part of the squares of what was lost.
template <class T>
__device__ inline double EncodeFloats(const float* x, int n, std::byte* row) {
  auto* out = reinterpret_cast<T*>(row);
  double lost = 0;
  for (int i = threadIdx.x % kWarp; i < n; i += kWarp) {
    const T value = FromFloat<T>(x[i]);
    out[i] = value;
    const double difference = static_cast<double>(x[i]) - ToFloat(value);
    lost += difference * difference;
  }
  return lost;
}

__device__ inline double EncodeInt8(const float* x, int n, std::byte* row, float2* scales) {
  constexpr float kLevels = 255;
  const QuantBlock block = MakeQuantBlock(x, n, kLevels);
  double lost = 0;
  for (int i = threadIdx.x % kWarp; i < n; i += kWarp) {
    const uint8_t code = block.Code(x[i], kLevels);
    row[i] = static_cast<std::byte>(code);
    lost += block.Lost(x[i], code);
  }
  if (threadIdx.x % kWarp == 0) *scales = {block.scale, block.zero};
  return lost;
}

// REQUIRES: n is a multiple of 16, as KvStorage sees to. A block has 32 elements, or 16: an element
// a thread.
__device__ inline double EncodeInt4(const float* x, int n, std::byte* row, float2* scales) {
  constexpr float kLevels = 15;
  constexpr int kBlock = 32;
  static_assert(kBlock == kWarp);
  const int lane = threadIdx.x % kWarp;
  double lost = 0;
  for (int begin = 0; begin < n; begin += kBlock) {
    const int size = min(kBlock, n - begin);
    const QuantBlock block = MakeQuantBlock(x + begin, size, kLevels);
    unsigned code = 0;
    if (lane < size) {
      code = block.Code(x[begin + lane], kLevels);
      lost += block.Lost(x[begin + lane], static_cast<uint8_t>(code));
    }
    const unsigned other = __shfl_down_sync(kAllLanes, code, size / 2);
    if (lane < size / 2) row[begin / 2 + lane] = static_cast<std::byte>(code << 4 | other);
    if (lane == 0) scales[begin / kBlock] = {block.scale, block.zero};
  }
  return lost;
}

// x: [head_dim] in shared memory. Returns, to every thread of the warp, the square of the L2 norm
// of what the format lost.
__device__ inline double EncodeRow(KvFormat f, const float* x, int head_dim, const KvHead& head,
                                   int slot) {
  std::byte* row = head.row(slot);
  double lost = 0;
  switch (f) {
    case KvFormat::kF32:
      lost = EncodeFloats<float>(x, head_dim, row);
      break;
    case KvFormat::kBF16:
      lost = EncodeFloats<__nv_bfloat16>(x, head_dim, row);
      break;
    case KvFormat::kF16:
      lost = EncodeFloats<__half>(x, head_dim, row);
      break;
    case KvFormat::kInt8:
      lost = EncodeInt8(x, head_dim, row, head.row_scales(slot));
      break;
    case KvFormat::kInt4:
      lost = EncodeInt4(x, head_dim, row, head.row_scales(slot));
      break;
  }
  return ReduceWarp(lost, Plus());
}

}  // namespace keyline::cuda
