#include "kernels/cpu/cache/kv_layout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace keyline::cpu {
namespace {

// Rounds to the nearest, halves to even, in the default rounding mode; NaN stays NaN.
uint16_t ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float FromBF16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

uint16_t ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float size = std::fabs(x);
  if (x != x) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;  // rounds up to infinity
  if (size < 6.103515625e-5f) {                // subnormal: multiples of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(size * 16777216.0f));
  }
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}
float FromF16(uint16_t x) {
  const uint32_t sign = uint32_t{x & 0x8000u} << 16;
  const uint32_t magnitude = x & 0x7fff;
  if (magnitude >= 0x7c00) {
    return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  }
  const float value = magnitude < 0x400 ? static_cast<float>(magnitude) / 16777216.0f
                                        : std::bit_cast<float>((magnitude << 13) + (112u << 23));
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

struct Block {
  float scale = 0;
  float zero = 0;
};

// The scheme of cache_memory.h. q: one code an element.
Block Quantize(const float* x, int n, int levels, uint8_t* q) {
  const auto [low, high] = std::minmax_element(x, x + n);
  Block block;
  block.scale = std::max((*high - *low) / static_cast<float>(levels), 0x1p-23f);
  block.zero = -std::nearbyint(*low / block.scale);
  for (int i = 0; i < n; ++i) {
    const float code = std::nearbyint(x[i] / block.scale) + block.zero;
    // A NaN fails both comparisons and becomes 0: converting it would be undefined.
    q[i] = code >= static_cast<float>(levels) ? static_cast<uint8_t>(levels)
           : code > 0                         ? static_cast<uint8_t>(code)
                                              : 0;
  }
  return block;
}

float Dequantize(uint8_t q, const Block& block) {
  return (static_cast<float>(q) - block.zero) * block.scale;
}

float EncodeQuantized(const RowLayout& layout, const float* values, std::byte* packed) {
  const bool int4 = layout.format == KvFormat::kInt4;
  const int size = KvBlock(layout.format, layout.head_dim);
  std::byte* scales = packed + layout.parts;
  double lost = 0;
  uint8_t codes[32];  // of a block of int4
  for (int begin = 0; begin < layout.head_dim; begin += size) {
    const int n = std::min(size, layout.head_dim - begin);
    uint8_t* q = int4 ? codes : reinterpret_cast<uint8_t*>(packed);
    const Block block = Quantize(values + begin, n, int4 ? 15 : 255, q);
    for (int i = 0; i < n; ++i) {
      const double difference = double{values[begin + i]} - Dequantize(q[i], block);
      lost += difference * difference;
    }
    if (int4) {
      for (int i = 0; i < n / 2; ++i) {
        packed[begin / 2 + i] = static_cast<std::byte>(q[i] << 4 | q[n / 2 + i]);
      }
    }
    std::memcpy(scales, &block, sizeof(block));
    scales += sizeof(block);
  }
  return static_cast<float>(std::sqrt(lost));
}

void DecodeQuantized(const RowLayout& layout, const std::byte* packed, float* values) {
  const bool int4 = layout.format == KvFormat::kInt4;
  const int size = KvBlock(layout.format, layout.head_dim);
  const std::byte* scales = packed + layout.parts;
  for (int begin = 0; begin < layout.head_dim; begin += size) {
    const int n = std::min(size, layout.head_dim - begin);
    Block block;
    std::memcpy(&block, scales, sizeof(block));
    scales += sizeof(block);
    for (int i = 0; i < n; ++i) {
      uint8_t q;
      if (int4) {
        const auto pair = static_cast<uint8_t>(packed[begin / 2 + i % (n / 2)]);
        q = i < n / 2 ? pair >> 4 : pair & 15;
      } else {
        q = static_cast<uint8_t>(packed[begin + i]);
      }
      values[begin + i] = Dequantize(q, block);
    }
  }
}

template <class Part>
float EncodeParts(const float* values, int n, std::byte* packed, Part (*to)(float),
                  float (*from)(Part)) {
  double lost = 0;
  for (int i = 0; i < n; ++i) {
    const Part part = to(values[i]);
    std::memcpy(packed + i * sizeof(part), &part, sizeof(part));
    const double difference = double{values[i]} - from(part);
    lost += difference * difference;
  }
  return static_cast<float>(std::sqrt(lost));
}

template <class Part>
void DecodeParts(const std::byte* packed, int n, float* values, float (*from)(Part)) {
  for (int i = 0; i < n; ++i) {
    Part part;
    std::memcpy(&part, packed + i * sizeof(part), sizeof(part));
    values[i] = from(part);
  }
}

template <class Part>
void PutParts(std::byte* tile, int lane, int parts, const std::byte* packed) {
  for (int i = 0; i < parts; ++i) {
    std::memcpy(tile + (i * kTileSlots + lane) * sizeof(Part), packed + i * sizeof(Part),
                sizeof(Part));
  }
}

template <class Part>
void GetParts(const std::byte* tile, int lane, int parts, std::byte* packed) {
  for (int i = 0; i < parts; ++i) {
    std::memcpy(packed + i * sizeof(Part), tile + (i * kTileSlots + lane) * sizeof(Part),
                sizeof(Part));
  }
}

}  // namespace

float EncodeRow(const RowLayout& layout, const float* values, std::byte* packed) {
  switch (layout.format) {
    case KvFormat::kF32:
      std::memcpy(packed, values, layout.head_dim * sizeof(float));
      return 0;
    case KvFormat::kBF16:
      return EncodeParts<uint16_t>(values, layout.head_dim, packed, ToBF16, FromBF16);
    case KvFormat::kF16:
      return EncodeParts<uint16_t>(values, layout.head_dim, packed, ToF16, FromF16);
    case KvFormat::kInt8:
    case KvFormat::kInt4:
      return EncodeQuantized(layout, values, packed);
  }
  return 0;
}

void DecodeRow(const RowLayout& layout, const std::byte* packed, float* values) {
  switch (layout.format) {
    case KvFormat::kF32:
      std::memcpy(values, packed, layout.head_dim * sizeof(float));
      return;
    case KvFormat::kBF16:
      return DecodeParts<uint16_t>(packed, layout.head_dim, values, FromBF16);
    case KvFormat::kF16:
      return DecodeParts<uint16_t>(packed, layout.head_dim, values, FromF16);
    case KvFormat::kInt8:
    case KvFormat::kInt4:
      return DecodeQuantized(layout, packed, values);
  }
}

void PutK(const RowLayout& layout, std::byte* k, int slot, const std::byte* packed) {
  std::byte* tile = k + size_t(slot / kTileSlots) * kTileSlots * layout.row_bytes;
  const int lane = slot % kTileSlots;
  if (layout.part_bytes == 4) PutParts<uint32_t>(tile, lane, layout.parts, packed);
  if (layout.part_bytes == 2) PutParts<uint16_t>(tile, lane, layout.parts, packed);
  if (layout.part_bytes == 1) PutParts<uint8_t>(tile, lane, layout.parts, packed);
  PutParts<float>(tile + layout.tile_scales(), lane, layout.floats,
                  packed + size_t(layout.parts) * layout.part_bytes);
}

void GetK(const RowLayout& layout, const std::byte* k, int slot, std::byte* packed) {
  const std::byte* tile = k + size_t(slot / kTileSlots) * kTileSlots * layout.row_bytes;
  const int lane = slot % kTileSlots;
  if (layout.part_bytes == 4) GetParts<uint32_t>(tile, lane, layout.parts, packed);
  if (layout.part_bytes == 2) GetParts<uint16_t>(tile, lane, layout.parts, packed);
  if (layout.part_bytes == 1) GetParts<uint8_t>(tile, lane, layout.parts, packed);
  GetParts<float>(tile + layout.tile_scales(), lane, layout.floats,
                  packed + size_t(layout.parts) * layout.part_bytes);
}

void PutV(const RowLayout& layout, std::byte* v, int slot, const std::byte* packed) {
  std::byte* row = v + size_t(slot) * layout.row_bytes;
  const size_t codes = size_t(layout.parts) * layout.part_bytes;
  std::memcpy(row, packed, codes);
  std::memcpy(row + layout.codes_bytes, packed + codes, layout.floats * sizeof(float));
}

void GetV(const RowLayout& layout, const std::byte* v, int slot, std::byte* packed) {
  const std::byte* row = v + size_t(slot) * layout.row_bytes;
  const size_t codes = size_t(layout.parts) * layout.part_bytes;
  std::memcpy(packed, row, codes);
  std::memcpy(packed + codes, row + layout.codes_bytes, layout.floats * sizeof(float));
}

}  // namespace keyline::cpu
