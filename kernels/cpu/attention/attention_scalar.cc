// The attention kernels in plain C++, for any machine; the slow but simple form of each load.
#include "kernels/cpu/attention/segment_kernels.h"
#include "kernels/cpu/isa/lanes_scalar.h"

namespace keyline {
namespace {

struct Lanes : ScalarLanes {
  static constexpr int kAccumulators = 4;

  static V LoadBF16(const uint16_t* p) {
    return Each([&](int i) { return FromBits(uint32_t{p[i]} << 16); });
  }
  static V LoadF16(const uint16_t* p) {
    return Each([&](int i) {
      const uint32_t sign = uint32_t{p[i]} >> 15 << 31;
      const uint32_t magnitude = p[i] & 0x7fffu;
      if (magnitude >= 0x7c00) return FromBits(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
      if (magnitude < 0x400) {  // subnormal: multiples of 2^-24
        return FromBits(sign | Bits(static_cast<float>(magnitude) / 16777216.0f));
      }
      return FromBits(sign | ((magnitude << 13) + (112u << 23)));
    });
  }
  static V LoadBytes(const uint8_t* p) {
    return Each([&](int i) { return static_cast<float>(p[i]); });
  }
  // Nibbles of 16 bytes, the high ones for shift 4, the low ones for 0.
  static V LoadNibbles(const uint8_t* p, int shift) {
    return Each([&](int i) { return static_cast<float>(p[i] >> shift & 15); });
  }
  // The high nibbles of 8 bytes, then their low nibbles.
  static V LoadNibblePairs(const uint8_t* p) {
    return Each([&](int i) { return static_cast<float>(i < 8 ? p[i] >> 4 : p[i - 8] & 15); });
  }
  // v where low < position <= high, otherwise `other`.
  static V IfWithin(const int32_t* position, int32_t low, int32_t high, V v, V other) {
    return Each([&](int i) {
      return position[i] > low && position[i] <= high ? v.lane[i] : other.lane[i];
    });
  }
};

}  // namespace

extern const AttentionKernels kScalarAttention = MakeAttentionKernels<Lanes>();

}  // namespace keyline
