// Packed weights in kernels: a lane's share of a tile (packed_layout.h) as what tensor cores
// multiply, and single numbers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <glog/logging.h>

#include <cstdint>

#include "kernels/cuda/matmul/packed_layout.h"
#include "kernels/device/dtype.h"

namespace keyline::cuda {

// Eight codes as four registers of two numbers of type T each. Codes are put into the mantissa of a
// number whose unit is one, and that number is taken off again: both steps are exact.
template <class T>
struct CodesAs;

template <>
struct CodesAs<__half> {
  __device__ static uint32_t Less(uint32_t pair, uint32_t offset) {
    const __half2 x = __hsub2(*reinterpret_cast<const __half2*>(&pair),
                              *reinterpret_cast<const __half2*>(&offset));
    return *reinterpret_cast<const uint32_t*>(&x);
  }
  __device__ static void Nibbles(uint32_t word, uint32_t (&out)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = Less((word >> 4 * i & 0x000f000fu) | 0x64006400u, 0x64006400u);  // 1024
    }
  }
  __device__ static void Bytes(uint2 words, uint32_t (&out)[4]) {
    constexpr uint32_t kOffset = 0x64806480u;  // 1024 + 128
    out[0] = Less(__byte_perm(words.x, 0x64646464u, 0x4140), kOffset);
    out[1] = Less(__byte_perm(words.x, 0x64646464u, 0x4342), kOffset);
    out[2] = Less(__byte_perm(words.y, 0x64646464u, 0x4140), kOffset);
    out[3] = Less(__byte_perm(words.y, 0x64646464u, 0x4342), kOffset);
  }
  static constexpr uint32_t kOnes = 0x3c003c00u;
};

template <>
struct CodesAs<__nv_bfloat16> {
  __device__ static void Nibbles(uint32_t word, uint32_t (&out)[4]) {
    constexpr uint32_t kMagic = 0x43004300u;  // 128
    const uint32_t magic = kMagic;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = (word >> 4 * i & 0x000f000fu) | kMagic;
      const __nv_bfloat162 x = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&pair),
                                       *reinterpret_cast<const __nv_bfloat162*>(&magic));
      out[i] = *reinterpret_cast<const uint32_t*>(&x);
    }
  }
  // Seven bits of mantissa do not hold a byte: by way of float32, whose upper half is the number,
  // because no code needs more than eight bits.
  __device__ static void Bytes(uint2 words, uint32_t (&out)[4]) {
    out[0] = Pair(words.x, 0x7440, 0x7441);
    out[1] = Pair(words.x, 0x7442, 0x7443);
    out[2] = Pair(words.y, 0x7440, 0x7441);
    out[3] = Pair(words.y, 0x7442, 0x7443);
  }
  static constexpr uint32_t kOnes = 0x3f803f80u;

 private:
  __device__ static uint32_t Pair(uint32_t word, uint32_t first, uint32_t second) {
    return __byte_perm(Code(word, first), Code(word, second), 0x7632);
  }
  __device__ static uint32_t Code(uint32_t word, uint32_t byte) {
    constexpr float kOffset = 8388608.0f + 128.0f;  // 2^23: its unit is one
    return __float_as_uint(__uint_as_float(__byte_perm(word, 0x4b000000u, byte)) - kOffset);
  }
};

struct ScaleAndMin {
  float scale;
  float min;
};

// What a lane has of a tile, for each half of its inputs.
struct LaneQ8 {
  using Tile = TileQ8;
  static constexpr bool kHasMin = false;
  uint4 codes;
  uint32_t scales;

  __device__ void Load(const Tile* tile, int lane) {
    codes = __ldcs(reinterpret_cast<const uint4*>(tile->codes[lane]));
    scales = __ldcs(reinterpret_cast<const uint32_t*>(tile->scales[lane / 4]));
  }
  template <class T>
  __device__ void Codes(int half, uint32_t (&out)[4]) const {
    CodesAs<T>::Bytes(half == 0 ? make_uint2(codes.x, codes.y) : make_uint2(codes.z, codes.w), out);
  }
  __device__ ScaleAndMin Scale(int half) const {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&scales));
    return {half == 0 ? both.x : both.y, 0};
  }
};

struct LaneQ4 {
  using Tile = TileQ4;
  static constexpr bool kHasMin = true;
  uint2 codes;
  uint2 scales;

  __device__ void Load(const Tile* tile, int lane) {
    codes = __ldcs(reinterpret_cast<const uint2*>(tile->codes[lane]));
    scales = __ldcs(reinterpret_cast<const uint2*>(tile->scales[lane / 4]));
  }
  template <class T>
  __device__ void Codes(int half, uint32_t (&out)[4]) const {
    CodesAs<T>::Nibbles(half == 0 ? codes.x : codes.y, out);
  }
  __device__ ScaleAndMin Scale(int half) const {
    const uint32_t pair = half == 0 ? scales.x : scales.y;
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    return {both.x, both.y};
  }
};

// Code j of the eight that `lane` has of a half.
__device__ inline float CodeOf(const TileQ8& tile, int lane, int half, int j) {
  return static_cast<float>(static_cast<int>(tile.codes[lane][half][j]) - 128);
}
__device__ inline float CodeOf(const TileQ4& tile, int lane, int half, int j) {
  return static_cast<float>(tile.codes[lane][half] >> 4 * NibbleOf(j) & 15u);
}
__device__ inline ScaleAndMin ScaleOf(const TileQ8& tile, int row, int half) {
  return {__half2float(__ushort_as_half(tile.scales[row][half])), 0};
}
__device__ inline ScaleAndMin ScaleOf(const TileQ4& tile, int row, int half) {
  return {__half2float(__ushort_as_half(tile.scales[row][half][0])),
          __half2float(__ushort_as_half(tile.scales[row][half][1]))};
}

// A matrix of tiles, element by element.
template <class Tile>
__device__ float PackedElement(const Tile* tiles, int64_t tiles_of_row, int64_t row, int64_t col) {
  const Tile& tile = tiles[row / kPackedRows * tiles_of_row + col / kPackedCols];
  const int r = static_cast<int>(row % kPackedRows);
  const int c = static_cast<int>(col % kPackedCols);
  const ScaleAndMin by = ScaleOf(tile, r, HalfOf(c));
  return fmaf(by.scale, CodeOf(tile, LaneOf(r, c), HalfOf(c), c % 8), by.min);
}

// Calls body(Lane{}) with the lane's share of a packed type.
template <class Body>
void DispatchPacked(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kQ8_0:
      return body(LaneQ8{});
    case DType::kQ4_1:
      return body(LaneQ4{});
    default:
      LOG(FATAL) << "no packed weight is " << Name(dtype);
  }
}

}  // namespace keyline::cuda
