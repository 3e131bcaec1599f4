// Numbers of 16 bits (IEEE half precision) on the host, as files and scales of weights have them.
#pragma once

#include <bit>
#include <cstdint>

namespace keyline {

// Branch-free, so that loops over it vectorise: both the normal and the subnormal reading are
// computed and one is taken. Infinities and NaNs come out as such.
inline float FromHalf(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t magnitude = bits << 1;
  const float normal = std::bit_cast<float>((magnitude >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = std::bit_cast<float>((magnitude >> 17) | (126u << 23)) - 0.5f;
  const uint32_t value =
      magnitude < (1u << 27) ? std::bit_cast<uint32_t>(subnormal) : std::bit_cast<uint32_t>(normal);
  return std::bit_cast<float>(sign | value);
}

// To the nearest, ties to even; infinity beyond the range; NaN stays NaN.
inline uint16_t ToHalf(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: units of 2^-24, those of 0.5 + x
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace keyline
