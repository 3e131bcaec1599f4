// Sixteen floats as two 256-bit registers; see lanes_scalar.h for the operations.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace keyline {
namespace {

struct Avx2Lanes {
  struct V {
    __m256 low, high;
  };

  static V Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static V Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static V LoadFirst(const float* p, int n) {
    return {_mm256_maskload_ps(p, Mask(n)), _mm256_maskload_ps(p + 8, Mask(n - 8))};
  }
  static void Store(float* p, V v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static void StoreFirst(float* p, V v, int n) {
    if (n == 16) return Store(p, v);  // masked stores are slow on some machines
    _mm256_maskstore_ps(p, Mask(n), v.low);
    _mm256_maskstore_ps(p + 8, Mask(n - 8), v.high);
  }
  static V LoadFirstOfPairs(const std::uint16_t* p) {
    const auto widen = [](__m256i pairs) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    };
    return {widen(LoadPairs(p)), widen(LoadPairs(p + 16))};
  }
  static V LoadSecondOfPairs(const std::uint16_t* p) {
    const auto widen = [](__m256i pairs) {
      return _mm256_castsi256_ps(
          _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    };
    return {widen(LoadPairs(p)), widen(LoadPairs(p + 16))};
  }

  static V Add(V a, V b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static V Sub(V a, V b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static V Mul(V a, V b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static V Div(V a, V b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static V MulAdd(V a, V b, V c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static V Min(V a, V b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static V Max(V a, V b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static V Round(V a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
  }
  static V Scale(V x, V n) { return {ScaleHalf(x.low, n.low), ScaleHalf(x.high, n.high)}; }
  static V IfFinite(V x, V v, V other) {
    return {_mm256_blendv_ps(other.low, v.low, Finite(x.low)),
            _mm256_blendv_ps(other.high, v.high, Finite(x.high))};
  }
  static int CountFinite(V x) {
    return __builtin_popcount(_mm256_movemask_ps(Finite(x.low))) +
           __builtin_popcount(_mm256_movemask_ps(Finite(x.high)));
  }
  static V RoundToBF16(V x) { return {RoundHalf(x.low), RoundHalf(x.high)}; }

 private:
  static __m256i LoadPairs(const std::uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i Mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m256 ScaleHalf(__m256 x, __m256 n) {
    const __m256i exponent = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(exponent, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, PowerOfTwo(half)),
                         PowerOfTwo(_mm256_sub_epi32(exponent, half)));
  }
  static __m256 PowerOfTwo(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static __m256 Finite(__m256 x) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    const __m256i infinite =
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(x), exponent), exponent);
    return _mm256_castsi256_ps(_mm256_xor_si256(infinite, _mm256_set1_epi32(-1)));
  }
  static __m256 RoundHalf(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i top = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_and_si256(rounded, top)),
                            _mm256_castsi256_ps(_mm256_and_si256(quiet, top)), nan);
  }
};

// Integers of eight outputs, four inputs each; see ScalarInts for the operations.
struct Avx2Ints {
  static constexpr int kOutputs = 8;
  // AMD's Zen 3 reads 8 % faster with 1 KiB than with 4.
  static constexpr std::int64_t kPrefetchBytes = 1024;
  using F = __m256;
  using Bytes = __m256i;
  using Signed = __m256i;
  struct SignedSum {
    __m256i lanes;  // 8 of 32 bits
  };
  struct NibbleSum {
    __m256i pairs;  // 16 of 16 bits: 32 products of a nibble and a byte do not overflow two of them
  };

  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F LoadHalves(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F MulAdd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  static Signed LoadSigned(const std::int8_t* p) { return LoadAny(p); }
  static Bytes LoadBytes(const std::uint8_t* p) { return LoadAny(p); }
  static Bytes LowNibbles(Bytes pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi8(15)); }
  static Bytes HighNibbles(Bytes pairs) { return LowNibbles(_mm256_srli_epi16(pairs, 4)); }

  static SignedSum SignedZero(std::int32_t /*row_sum*/) { return {_mm256_setzero_si256()}; }
  static NibbleSum NibbleZero() { return {_mm256_setzero_si256()}; }
  // |w| * (a with w's sign): the instruction takes unsigned bytes times signed ones. Two products
  // are at most 2 * 128 * 127 and fit into 16 bits.
  static SignedSum DotSigned(SignedSum sum, Signed w, const std::int8_t* a) {
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(Broadcast(a), w));
    return {_mm256_add_epi32(sum.lanes, AddPairs(pairs))};
  }
  static NibbleSum DotNibbles(NibbleSum sum, Bytes w, const std::int8_t* a) {
    return {_mm256_add_epi16(sum.pairs, _mm256_maddubs_epi16(w, Broadcast(a)))};
  }
  static F ToFloat(SignedSum sum) { return _mm256_cvtepi32_ps(sum.lanes); }
  static F ToFloat(NibbleSum sum) { return _mm256_cvtepi32_ps(AddPairs(sum.pairs)); }

 private:
  static __m256i LoadAny(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static __m256i Broadcast(const std::int8_t* a) {
    std::int32_t four;
    __builtin_memcpy(&four, a, sizeof(four));
    return _mm256_set1_epi32(four);
  }
  static __m256i AddPairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};

}  // namespace
}  // namespace keyline
