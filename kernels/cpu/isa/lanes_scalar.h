// Sixteen floats as an array: the lanes of kernels_scalar.cc, and what the other lanes must equal.
//
// Every kind of lanes has the same operations, each rounding as its scalar form does. Min and Max
// return the second operand if either is NaN. They live in an unnamed namespace on purpose: code
// compiled for one instruction set must not be merged with another file's copy.
#pragma once

#include <cstdint>

namespace keyline {
namespace {

struct ScalarLanes {
  struct V {
    float lane[16];
  };

  template <class F>
  static V Each(const F& f) {
    V out;
    for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
    return out;
  }

  static V Set(float x) {
    return Each([&](int) { return x; });
  }
  static V Load(const float* p) {
    return Each([&](int i) { return p[i]; });
  }
  // The first n lanes; the others are zero.
  static V LoadFirst(const float* p, int n) {
    return Each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void Store(float* p, V v) {
    for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
  }
  static void StoreFirst(float* p, V v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v.lane[i];
  }
  // The first and the second of 16 pairs of bf16.
  static V LoadFirstOfPairs(const std::uint16_t* p) {
    return Each([&](int i) { return FromBits(uint32_t{p[2 * i]} << 16); });
  }
  static V LoadSecondOfPairs(const std::uint16_t* p) {
    return Each([&](int i) { return FromBits(uint32_t{p[2 * i + 1]} << 16); });
  }

  static V Add(V a, V b) {
    return Each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static V Sub(V a, V b) {
    return Each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static V Mul(V a, V b) {
    return Each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static V Div(V a, V b) {
    return Each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static V MulAdd(V a, V b, V c) {
    return Each([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static V Min(V a, V b) {
    return Each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static V Max(V a, V b) {
    return Each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static V Round(V a) {
    return Each([&](int i) { return __builtin_rintf(a.lane[i]); });
  }
  // x * 2^n for integral n in [-160, 160].
  static V Scale(V x, V n) {
    return Each([&](int i) {
      const int exponent = n.lane[i] > -1000 && n.lane[i] < 1000 ? static_cast<int>(n.lane[i]) : 0;
      const int half = exponent >> 1;
      return x.lane[i] * FromBits(static_cast<uint32_t>(half + 127) << 23) *
             FromBits(static_cast<uint32_t>(exponent - half + 127) << 23);
    });
  }
  // v where x is finite, otherwise `other`.
  static V IfFinite(V x, V v, V other) {
    return Each([&](int i) { return Finite(x.lane[i]) ? v.lane[i] : other.lane[i]; });
  }
  static int CountFinite(V x) {
    int count = 0;
    for (int i = 0; i < 16; ++i) count += Finite(x.lane[i]);
    return count;
  }
  // To the nearest bf16, ties to even; NaN stays NaN.
  static V RoundToBF16(V x) {
    return Each([&](int i) {
      const uint32_t bits = Bits(x.lane[i]);
      if (x.lane[i] != x.lane[i]) return FromBits((bits | 0x400000u) & 0xffff0000u);
      return FromBits((bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u);
    });
  }

  static uint32_t Bits(float x) { return __builtin_bit_cast(uint32_t, x); }
  static float FromBits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
  static bool Finite(float x) { return (Bits(x) & 0x7f800000u) != 0x7f800000u; }
};

// Integers of 16 outputs, four inputs each: what block_kernels.h multiplies packed weights with.
struct ScalarInts {
  static constexpr int kOutputs = 16;
  // How far ahead of the loads weights are asked for.
  static constexpr std::int64_t kPrefetchBytes = 4096;
  using F = ScalarLanes::V;
  struct Bytes {
    std::uint8_t byte[16][4];
  };
  struct Signed {
    std::int8_t byte[16][4];
  };
  struct Sum {
    std::int32_t lane[16];
  };
  using SignedSum = Sum;
  using NibbleSum = Sum;

  static F Set(float x) { return ScalarLanes::Set(x); }
  static F Load(const float* p) { return ScalarLanes::Load(p); }
  static void Store(float* p, F v) { ScalarLanes::Store(p, v); }
  static F LoadHalves(const std::uint16_t* p) {
    return ScalarLanes::Each([&](int i) { return FromHalf(p[i]); });
  }
  static F Mul(F a, F b) { return ScalarLanes::Mul(a, b); }
  static F MulAdd(F a, F b, F c) { return ScalarLanes::MulAdd(a, b, c); }

  static Signed LoadSigned(const std::int8_t* p) {
    Signed out;
    __builtin_memcpy(&out, p, sizeof(out));
    return out;
  }
  static Bytes LoadBytes(const std::uint8_t* p) {
    Bytes out;
    __builtin_memcpy(&out, p, sizeof(out));
    return out;
  }
  static Bytes LowNibbles(Bytes pairs) {
    for (auto& lane : pairs.byte) {
      for (std::uint8_t& b : lane) b &= 15;
    }
    return pairs;
  }
  static Bytes HighNibbles(Bytes pairs) {
    for (auto& lane : pairs.byte) {
      for (std::uint8_t& b : lane) b >>= 4;
    }
    return pairs;
  }
  // `row_sum`: the sum of the codes of the row's block, for sets that shift the weights.
  static SignedSum SignedZero(std::int32_t /*row_sum*/) { return {}; }
  static NibbleSum NibbleZero() { return {}; }
  static SignedSum DotSigned(SignedSum sum, const Signed& w, const std::int8_t* a) {
    return Dot(sum, w.byte, a);
  }
  static NibbleSum DotNibbles(NibbleSum sum, const Bytes& w, const std::int8_t* a) {
    return Dot(sum, w.byte, a);
  }
  static F ToFloat(Sum sum) {
    return ScalarLanes::Each([&](int i) { return static_cast<float>(sum.lane[i]); });
  }

 private:
  template <class Code>
  static Sum Dot(Sum sum, const Code (&w)[16][4], const std::int8_t* a) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) sum.lane[i] += w[i][j] * a[j];
    }
    return sum;
  }
  // No library inline function here: this file is compiled for several instruction sets.
  static float FromHalf(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t{half} << 16 & 0x80000000u;
    const std::uint32_t magnitude = std::uint32_t{half} << 13 & 0x0fffe000u;
    const float size = magnitude < 0x00800000u  // subnormal: units of 2^-24
                           ? static_cast<float>(magnitude >> 13) * 0x1p-24f
                           : magnitude >= 0x0f800000u
                                 ? ScalarLanes::FromBits(magnitude | 0x7f800000u)
                                 : ScalarLanes::FromBits(magnitude + (112u << 23));
    return ScalarLanes::FromBits(ScalarLanes::Bits(size) | sign);
  }
};

}  // namespace
}  // namespace keyline
