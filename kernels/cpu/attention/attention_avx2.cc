#include "kernels/cpu/attention/segment_kernels.h"
#include "kernels/cpu/isa/lanes_avx2.h"

namespace keyline {
namespace {

struct Lanes : Avx2Lanes {
  static constexpr int kAccumulators = 6;  // of two registers each, of 16

  static V LoadBF16(const uint16_t* p) { return {Widen(Load128(p)), Widen(Load128(p + 8))}; }
  static V LoadF16(const uint16_t* p) {
    return {_mm256_cvtph_ps(Load128(p)), _mm256_cvtph_ps(Load128(p + 8))};
  }
  static V LoadBytes(const uint8_t* p) { return Floats(Load128(p)); }
  static V LoadNibbles(const uint8_t* p, int shift) {
    return Floats(
        _mm_and_si128(_mm_srl_epi16(Load128(p), _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15)));
  }
  static V LoadNibblePairs(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i both = _mm_unpacklo_epi64(_mm_srli_epi16(bytes, 4), bytes);
    return Floats(_mm_and_si128(both, _mm_set1_epi8(15)));
  }
  static V IfWithin(const int32_t* position, int32_t low, int32_t high, V v, V other) {
    return {_mm256_blendv_ps(other.low, v.low, Within(position, low, high)),
            _mm256_blendv_ps(other.high, v.high, Within(position + 8, low, high))};
  }

 private:
  static __m128i Load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256 Widen(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static V Floats(__m128i bytes) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  static __m256 Within(const int32_t* position, int32_t low, int32_t high) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(position));
    const __m256i above = _mm256_cmpgt_epi32(x, _mm256_set1_epi32(low));
    const __m256i beyond = _mm256_cmpgt_epi32(x, _mm256_set1_epi32(high));
    return _mm256_castsi256_ps(_mm256_andnot_si256(beyond, above));
  }
};

}  // namespace

extern const AttentionKernels kAvx2Attention = MakeAttentionKernels<Lanes>();

}  // namespace keyline
