#include "runtime/files/gguf/gguf_blocks.h"

#include <glog/logging.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>

#include "kernels/device/half.h"

namespace keyline {
namespace {

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// The blocks as they lie in a file: little endian, no padding.
struct Q8_0 {
  uint16_t scale;
  int8_t quants[32];
};
struct Q4_0 {
  uint16_t scale;
  uint8_t quants[16];  // element i in the low, i + 16 in the high nibble
};
struct Q4_1 {
  uint16_t scale;
  uint16_t min;
  uint8_t quants[16];
};
struct Q5_0 {
  uint16_t scale;
  uint8_t high[4];  // bit i: the fifth bit of element i
  uint8_t quants[16];
};
struct Q5_1 {
  uint16_t scale;
  uint16_t min;
  uint8_t high[4];
  uint8_t quants[16];
};
struct Q4_K {
  uint16_t scale;
  uint16_t min;
  uint8_t scales[12];  // eight scales and eight mins of six bits, see SixBitScales
  uint8_t quants[128];
};
struct Q5_K {
  uint16_t scale;
  uint16_t min;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t quants[128];
};
struct Q6_K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t scale;
};

void Dequantize(const Q8_0& b, float* out) {
  const float scale = FromHalf(b.scale);
  for (int i = 0; i < 32; ++i) out[i] = scale * b.quants[i];
}

void Dequantize(const Q4_0& b, float* out) {
  const float scale = FromHalf(b.scale);
  for (int i = 0; i < 16; ++i) out[i] = scale * ((b.quants[i] & 15) - 8);
  for (int i = 0; i < 16; ++i) out[i + 16] = scale * ((b.quants[i] >> 4) - 8);
}

void Dequantize(const Q4_1& b, float* out) {
  const float scale = FromHalf(b.scale);
  const float min = FromHalf(b.min);
  for (int i = 0; i < 16; ++i) out[i] = scale * (b.quants[i] & 15) + min;
  for (int i = 0; i < 16; ++i) out[i + 16] = scale * (b.quants[i] >> 4) + min;
}

// The five bits of 32 elements.
std::array<int, 32> FiveBits(const uint8_t (&high)[4], const uint8_t (&quants)[16]) {
  uint32_t fifth = 0;
  std::memcpy(&fifth, high, sizeof(fifth));
  std::array<int, 32> q;
  for (uint32_t i = 0; i < 16; ++i) {
    q[i] = static_cast<int>((quants[i] & 15u) | ((fifth >> i & 1u) << 4));
    q[i + 16] = static_cast<int>((quants[i] >> 4u) | ((fifth >> (i + 16) & 1u) << 4));
  }
  return q;
}

void Dequantize(const Q5_0& b, float* out) {
  const float scale = FromHalf(b.scale);
  const std::array<int, 32> q = FiveBits(b.high, b.quants);
  for (int i = 0; i < 32; ++i) out[i] = scale * (q[i] - 16);
}

void Dequantize(const Q5_1& b, float* out) {
  const float scale = FromHalf(b.scale);
  const float min = FromHalf(b.min);
  const std::array<int, 32> q = FiveBits(b.high, b.quants);
  for (int i = 0; i < 32; ++i) out[i] = scale * q[i] + min;
}

// Sub-block i of a K block: element = scale * q - min.
struct ScaleAndMin {
  float scale;
  float min;
};

template <class Block>
std::array<ScaleAndMin, 8> SixBitScales(const Block& b) {
  const float scale = FromHalf(b.scale);
  const float min = FromHalf(b.min);
  const uint8_t* s = b.scales;
  std::array<ScaleAndMin, 8> out;
  for (int i = 0; i < 4; ++i) {
    out[i] = {scale * (s[i] & 63), min * (s[i + 4] & 63)};
    // The upper four: low bits in the last four bytes, top two bits above those of the lower four.
    out[i + 4] = {scale * ((s[i + 8] & 15) | (s[i] >> 6 << 4)),
                  min * ((s[i + 8] >> 4) | (s[i + 4] >> 6 << 4))};
  }
  return out;
}

void Dequantize(const Q4_K& b, float* out) {
  const std::array<ScaleAndMin, 8> scales = SixBitScales(b);
  for (int pair = 0; pair < 4; ++pair) {  // two sub-blocks share 32 bytes
    const uint8_t* quants = b.quants + 32 * pair;
    const ScaleAndMin low = scales[2 * pair];
    const ScaleAndMin high = scales[2 * pair + 1];
    for (int i = 0; i < 32; ++i) out[64 * pair + i] = low.scale * (quants[i] & 15) - low.min;
    for (int i = 0; i < 32; ++i) out[64 * pair + 32 + i] = high.scale * (quants[i] >> 4) - high.min;
  }
}

void Dequantize(const Q5_K& b, float* out) {
  const std::array<ScaleAndMin, 8> scales = SixBitScales(b);
  for (int pair = 0; pair < 4; ++pair) {
    const uint8_t* quants = b.quants + 32 * pair;
    const ScaleAndMin low = scales[2 * pair];
    const ScaleAndMin high = scales[2 * pair + 1];
    for (int i = 0; i < 32; ++i) {
      const int fifth = b.high[i] >> (2 * pair) & 1;
      out[64 * pair + i] = low.scale * ((quants[i] & 15) | fifth << 4) - low.min;
    }
    for (int i = 0; i < 32; ++i) {
      const int fifth = b.high[i] >> (2 * pair + 1) & 1;
      out[64 * pair + 32 + i] = high.scale * ((quants[i] >> 4) | fifth << 4) - high.min;
    }
  }
}

void Dequantize(const Q6_K& b, float* out) {
  const float scale = FromHalf(b.scale);
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 4; ++quarter) {  // 32 elements each, with two scales
      const uint8_t* low = b.low + 64 * half + 32 * (quarter & 1);
      const uint8_t* high = b.high + 32 * half;
      const int8_t* scales = b.scales + 8 * half + 2 * quarter;
      const int nibble = quarter < 2 ? 0 : 4;
      float* o = out + 128 * half + 32 * quarter;
      for (int i = 0; i < 32; ++i) {
        const int q = ((low[i] >> nibble & 15) | (high[i] >> (2 * quarter) & 3) << 4) - 32;
        const int scale_index = i / 16;
        o[i] = scale * scales[scale_index] * q;
      }
    }
  }
}

template <class Block, DType kType>
void DequantizeBlocks(const std::byte* in, int64_t elements, float* out) {
  constexpr DTypeTraits kTraits = TraitsOf(kType);
  static_assert(sizeof(Block) == kTraits.block_bytes);
  CHECK_EQ(elements % kTraits.block_elements, 0);
  for (int64_t i = 0; i < elements / kTraits.block_elements; ++i) {
    Block block;  // a copy: blocks of a file are not aligned
    std::memcpy(&block, in + i * sizeof(Block), sizeof(Block));
    Dequantize(block, out + i * kTraits.block_elements);
  }
}

template <float (*kConvert)(uint16_t)>
void Convert16(const std::byte* in, int64_t elements, float* out) {
  for (int64_t i = 0; i < elements; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, in + 2 * i, sizeof(bits));
    out[i] = kConvert(bits);
  }
}

}  // namespace

bool CanDequantize(DType dtype) { return IsFloat(dtype) || TraitsOf(dtype).block_elements >= 32; }

void DequantizeRow(DType dtype, const std::byte* in, int64_t elements, float* out) {
  switch (dtype) {
    case DType::kF32:
      if (elements > 0) std::memcpy(out, in, static_cast<size_t>(elements) * sizeof(float));
      return;
    case DType::kF16:
      return Convert16<FromHalf>(in, elements, out);
    case DType::kBF16:
      return Convert16<FromBf16>(in, elements, out);
    case DType::kQ8_0:
      return DequantizeBlocks<Q8_0, DType::kQ8_0>(in, elements, out);
    case DType::kQ4_0:
      return DequantizeBlocks<Q4_0, DType::kQ4_0>(in, elements, out);
    case DType::kQ4_1:
      return DequantizeBlocks<Q4_1, DType::kQ4_1>(in, elements, out);
    case DType::kQ5_0:
      return DequantizeBlocks<Q5_0, DType::kQ5_0>(in, elements, out);
    case DType::kQ5_1:
      return DequantizeBlocks<Q5_1, DType::kQ5_1>(in, elements, out);
    case DType::kQ4_K:
      return DequantizeBlocks<Q4_K, DType::kQ4_K>(in, elements, out);
    case DType::kQ5_K:
      return DequantizeBlocks<Q5_K, DType::kQ5_K>(in, elements, out);
    case DType::kQ6_K:
      return DequantizeBlocks<Q6_K, DType::kQ6_K>(in, elements, out);
    case DType::kI32:
    case DType::kI8:
    case DType::kU8:
    case DType::kI64:
    case DType::kI4:
      break;
  }
  LOG(FATAL) << "not a float or block type: " << Name(dtype);
}

bool RewriteQ4_0(const std::byte* in, int64_t elements, std::byte* out) {
  CHECK_EQ(elements % 32, 0);
  for (int64_t i = 0; i < elements / 32; ++i) {
    Q4_0 from;
    std::memcpy(&from, in + i * sizeof(from), sizeof(from));
    Q4_1 to;
    to.scale = from.scale;
    const float min = -8 * FromHalf(from.scale);
    to.min = ToHalf(min);
    if (std::isfinite(min) && !std::isfinite(FromHalf(to.min))) return false;
    std::copy(std::begin(from.quants), std::end(from.quants), to.quants);
    std::memcpy(out + i * sizeof(to), &to, sizeof(to));
  }
  return true;
}

}  // namespace keyline
