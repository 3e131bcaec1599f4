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

}  // namespace
}  // namespace keyline
