// Stored K and V as numbers.
#pragma once

#include "kernels/cuda/cache/kv_layout.cuh"
#include "kernels/cuda/numbers.cuh"

namespace keyline::cuda {

__device__ inline float Dequantized(unsigned code, float2 scale_zero) {
  return (static_cast<float>(code) - scale_zero.y) * scale_zero.x;
}

// Eight neighbours of a quantised row, as they are stored, and what they mean.
struct StoredPack {
  uint2 codes;
  float2 scale_zero;
  unsigned shift, mask;  // of each byte

  // Needs head.row_scales, and rows that begin at multiples of 8 bytes. d: a multiple of 8.
  template <int kDim>
  static __device__ StoredPack Load(const KvHead& head, KvFormat format, int slot, int d) {
    if (format == KvFormat::kInt8) {
      return {*reinterpret_cast<const uint2*>(head.row(slot) + d), head.row_scales(slot)[0], 0,
              0xff};
    }
    // Blocks of 32, the last one of 16 where kDim is not a multiple of 32: a half has 16 or 8
    // elements, whole packs either way.
    const int block = d / 32;
    const int begin = block * 32;
    const int half = (kDim - begin < 32 ? kDim - begin : 32) / 2;
    const int i = d - begin;
    const bool high = i < half;
    return {*reinterpret_cast<const uint2*>(head.row(slot) + begin / 2 + (high ? i : i - half)),
            head.row_scales(slot)[block], high ? 4u : 0u, 15};
  }
  template <class T>
  __device__ Pack<T> Values() const {
    static_assert(Pack<T>::kSize == 8);
    Pack<T> out;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const unsigned code = ((j < 4 ? codes.x : codes.y) >> (j % 4 * 8 + shift)) & mask;
      out.value[j] = FromFloat<T>(Dequantized(code, scale_zero));
    }
    return out;
  }
};

// Element d of a slot's vector.
__device__ inline float StoredValue(const KvHead& head, KvFormat format, int head_dim, int slot,
                                    int d) {
  const std::byte* row = head.row(slot);
  switch (format) {
    case KvFormat::kF32:
      return reinterpret_cast<const float*>(row)[d];
    case KvFormat::kBF16:
      return ToFloat(reinterpret_cast<const __nv_bfloat16*>(row)[d]);
    case KvFormat::kF16:
      return ToFloat(reinterpret_cast<const __half*>(row)[d]);
    case KvFormat::kInt8:
      return Dequantized(reinterpret_cast<const uint8_t*>(row)[d], head.row_scales(slot)[0]);
    case KvFormat::kInt4: {
      const int size = KvBlock(format, head_dim);
      const int block = d / size;
      const int begin = block * size;
      const int half = (head_dim - begin < size ? head_dim - begin : size) / 2;
      const int i = d - begin;
      const unsigned pair = reinterpret_cast<const uint8_t*>(row)[begin / 2 + i % half];
      return Dequantized(i < half ? pair >> 4 : pair & 15, head.row_scales(slot)[block]);
    }
  }
  return 0;
}

}  // namespace keyline::cuda
