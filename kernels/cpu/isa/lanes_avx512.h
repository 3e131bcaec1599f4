// Sixteen floats as one 512-bit register; see lanes_scalar.h for the operations.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace keyline {
namespace {

struct Avx512Lanes {
  using V = __m512;

  static V Set(float x) { return _mm512_set1_ps(x); }
  static V Load(const float* p) { return _mm512_loadu_ps(p); }
  static V LoadFirst(const float* p, int n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static void Store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void StoreFirst(float* p, V v, int n) {
    if (n == 16) return Store(p, v);  // masked stores are slow on some machines
    _mm512_mask_storeu_ps(p, Mask(n), v);
  }
  static V LoadFirstOfPairs(const std::uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
  }
  static V LoadSecondOfPairs(const std::uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  static V Add(V a, V b) { return _mm512_add_ps(a, b); }
  static V Sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V Mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V Div(V a, V b) { return _mm512_div_ps(a, b); }
  static V MulAdd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V Min(V a, V b) { return _mm512_min_ps(a, b); }
  static V Max(V a, V b) { return _mm512_max_ps(a, b); }
  static V Round(V a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static V Scale(V x, V n) {
    const __m512i exponent = _mm512_cvtps_epi32(n);
    const __m512i half = _mm512_srai_epi32(exponent, 1);
    return _mm512_mul_ps(_mm512_mul_ps(x, PowerOfTwo(half)),
                         PowerOfTwo(_mm512_sub_epi32(exponent, half)));
  }
  static V IfFinite(V x, V v, V other) { return _mm512_mask_blend_ps(Finite(x), other, v); }
  static int CountFinite(V x) { return __builtin_popcount(Finite(x)); }
  static V RoundToBF16(V x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i top = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_mask_blend_epi32(nan, rounded, quiet), top));
  }

 private:
  static __mmask16 Mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static __m512 PowerOfTwo(__m512i n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  static __mmask16 Finite(__m512 x) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    return _mm512_cmpneq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(x), exponent), exponent);
  }
};

// Integers of 16 outputs, four inputs each; see ScalarInts for the operations.
struct Avx512Ints {
  static constexpr int kOutputs = 16;
  static constexpr std::int64_t kPrefetchBytes = 4096;
  using F = __m512;
  using Bytes = __m512i;
  using Signed = __m512i;
  struct SignedSum {
    __m512i lanes;  // 16 of 32 bits
  };
  struct NibbleSum {
    __m512i pairs;  // 32 of 16 bits: 32 products of a nibble and a byte do not overflow two of them
  };

  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F LoadHalves(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F MulAdd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  static Signed LoadSigned(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  static Bytes LoadBytes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static Bytes LowNibbles(Bytes pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi8(15)); }
  static Bytes HighNibbles(Bytes pairs) { return LowNibbles(_mm512_srli_epi16(pairs, 4)); }

  static SignedSum SignedZero(std::int32_t /*row_sum*/) { return {_mm512_setzero_si512()}; }
  static NibbleSum NibbleZero() { return {_mm512_setzero_si512()}; }
  // |w| * (a with w's sign): the instruction takes unsigned bytes times signed ones. Two products
  // are at most 2 * 128 * 127 and fit into 16 bits.
  static SignedSum DotSigned(SignedSum sum, Signed w, const std::int8_t* a) {
    const __m512i row = Broadcast(a);
    const __m512i with_sign =
        _mm512_mask_sub_epi8(row, _mm512_movepi8_mask(w), _mm512_setzero_si512(), row);
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), with_sign);
    return {_mm512_add_epi32(sum.lanes, AddPairs(pairs))};
  }
  static NibbleSum DotNibbles(NibbleSum sum, Bytes w, const std::int8_t* a) {
    return {_mm512_add_epi16(sum.pairs, _mm512_maddubs_epi16(w, Broadcast(a)))};
  }
  static F ToFloat(SignedSum sum) { return _mm512_cvtepi32_ps(sum.lanes); }
  static F ToFloat(NibbleSum sum) { return _mm512_cvtepi32_ps(AddPairs(sum.pairs)); }

  static __m512i Broadcast(const std::int8_t* a) {
    std::int32_t four;
    __builtin_memcpy(&four, a, sizeof(four));
    return _mm512_set1_epi32(four);
  }

 private:
  static __m512i AddPairs(__m512i pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
};

}  // namespace
}  // namespace keyline
