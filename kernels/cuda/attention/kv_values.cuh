// Stored K and V as numbers.
#pragma once

#include "kernels/cuda/cache/kv_layout.cuh"
#include "kernels/cuda/numbers.cuh"

namespace keyline::cuda {

__device__ inline float Dequantized(unsigned code, float2 scale_zero) {
  return (static_cast<float>(code) - scale_zero.y) * scale_zero.x;
}

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
